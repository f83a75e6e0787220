/* SPDX-License-Identifier: MIT */
/*
 * The CRC instruction takes three cycles, and a processor can begin one in each cycle.
 * Therefore the CRCs of three stretches are computed side by side. They are short, so that
 * the three are read as one stream: the processor loads ahead only of that.
 *
 * Faster are carry-less products of whole vectors. A product with x to the power of n moves
 * a block n bits on, onto a later one, with which it is added up ("Fast CRC Computation for
 * Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009). The CRC of what is left at
 * the end is that of everything.
 *
 * In this file the highest bit of a word is the lowest power of a polynomial. The bits of a
 * product are then one place off, which the powers of x below take into account.
 */
#include "base/crc32c.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL 0x82f63b78u

/* Bytes of each of the three that are computed side by side */
#define STRETCH ((size_t)336)

/* x to the power of 8 * STRETCH - 33, and of 16 * STRETCH - 33, modulo the polynomial */
#define AFTER_ONE 0xa60ce07bu
#define AFTER_TWO 0xcec3662eu

/* ---- without the instruction: four bits at a time ---- */

static uint32_t plain(uint32_t crc, const unsigned char *bytes, size_t size)
{
	static const uint32_t nibbles[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
		0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
		0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};

	for (; size; size--) {
		crc ^= *bytes++;
		crc = crc >> 4 ^ nibbles[crc & 15];
		crc = crc >> 4 ^ nibbles[crc & 15];
	}
	return crc;
}

/* ---- which instructions there are ---- */

/* Set before main(), as hypervisors take their time over the instruction that tells. */
static enum gmem_crc32c_way best;

#if defined(__x86_64__)
#define WITH_CRC	__attribute__((target("sse4.2")))
#define WITH_PRODUCT	__attribute__((target("sse4.2,pclmul")))
#define WITH_VECTORS	__attribute__((target("sse4.2,avx512f,pclmul,vpclmulqdq")))
#define add8(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define add1(crc, byte) _mm_crc32_u8((crc), (byte))

/* Does the kernel keep the registers of AVX-512 for each thread? */
static bool keeps_vectors(void)
{
	const uint32_t all = 0xe6;	/* XMM, YMM, mask registers, and both parts of ZMM */
	uint32_t low, high;

	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & all) == all;
}

__attribute__((constructor)) static void ask_processor(void)
{
	unsigned int a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_2))
		return;
	best = c & bit_PCLMUL ? GMEM_CRC32C_THREE : GMEM_CRC32C_ONE;
	if (best == GMEM_CRC32C_THREE && c & bit_OSXSAVE && keeps_vectors() &&
	    __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_AVX512F && c & bit_VPCLMULQDQ)
		best = GMEM_CRC32C_FOLD;
}

WITH_PRODUCT
static uint64_t product(uint32_t a, uint32_t b)
{
	return (uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a),
								_mm_cvtsi32_si128((int)b), 0));
}
#elif defined(__aarch64__)
#ifdef __clang__
#define WITH_CRC	__attribute__((target("crc")))
#define WITH_PRODUCT	__attribute__((target("crc,aes")))
#define add8(crc, word) __builtin_arm_crc32cd((crc), (word))
#define add1(crc, byte) __builtin_arm_crc32cb((crc), (byte))
#else
#define WITH_CRC	__attribute__((target("+crc")))
#define WITH_PRODUCT	__attribute__((target("+crc+crypto")))
#define add8(crc, word) __builtin_aarch64_crc32cx((crc), (word))
#define add1(crc, byte) __builtin_aarch64_crc32cb((crc), (byte))
#endif

__attribute__((constructor)) static void ask_processor(void)
{
	unsigned long has = getauxval(AT_HWCAP);

	if (has & HWCAP_CRC32)
		best = has & HWCAP_PMULL ? GMEM_CRC32C_THREE : GMEM_CRC32C_ONE;
}

WITH_PRODUCT
static uint64_t product(uint32_t a, uint32_t b)
{
	return (uint64_t)vmull_p64(a, b);
}
#endif

enum gmem_crc32c_way gmem_crc32c_best(void)
{
	return best;
}

/* ---- with the instruction ---- */

static uint64_t word_at(const unsigned char *bytes)
{
	uint64_t word;

	memcpy(&word, bytes, sizeof(word));
	return word;
}

WITH_CRC
static uint32_t one(uint32_t crc, const unsigned char *bytes, size_t size)
{
	for (; size >= 8; size -= 8, bytes += 8)
		crc = add8(crc, word_at(bytes));
	for (; size; size--)
		crc = add1(crc, *bytes++);
	return crc;
}

/* The CRC of a word multiplies it by x to the power of 32: it brings a product back to 32 bits. */
WITH_PRODUCT
static uint32_t three(uint32_t crc, const unsigned char *bytes, size_t size)
{
	for (; size >= 3 * STRETCH; size -= 3 * STRETCH, bytes += 3 * STRETCH) {
		uint32_t second = 0, third = 0;
		size_t i;

		for (i = 0; i < STRETCH - 8; i += 8) {
			crc = add8(crc, word_at(bytes + i));
			second = add8(second, word_at(bytes + STRETCH + i));
			third = add8(third, word_at(bytes + 2 * STRETCH + i));
		}
		crc = add8(crc, word_at(bytes + i));
		second = add8(second, word_at(bytes + STRETCH + i));
		crc = add8(third, word_at(bytes + 2 * STRETCH + i) ^ product(crc, AFTER_TWO) ^
					  product(second, AFTER_ONE));
	}
	return one(crc, bytes, size);
}

/* ---- with products of vectors ---- */

#if defined(__x86_64__)
/* Moves the four blocks of @blocks on by @power, and adds them to @later. */
#define FOLD(blocks, power, later) \
	_mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128((blocks), (power), 0x00), \
				  _mm512_clmulepi64_epi128((blocks), (power), 0x11), (later), 0x96)
#define FOLD_ONE(block, power, later) \
	_mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128((block), (power), 0x00), \
				    _mm_clmulepi64_si128((block), (power), 0x11)), (later))
#define VECTOR(n) _mm512_loadu_si512(bytes + 64 * (n))
/* x to the power of @bits + 63, for the first half of a block, and @bits - 1, for the second */
#define POWER(first, second) _mm_set_epi32((int)(second), 0, (int)(first), 0)

WITH_VECTORS
static uint32_t fold(uint32_t crc, const unsigned char *bytes, size_t size)
{
	const __m512i by_256 = _mm512_broadcast_i32x4(POWER(0xe9a5d8beu, 0x1426a815u));
	const __m512i by_64 = _mm512_broadcast_i32x4(POWER(0x1c19243bu, 0x75bba45bu));
	const __m128i by_16 = POWER(0x3743f7bdu, 0x3171d430u);
	__m512i a, b, c, d;
	__m128i block;

	if (size < 256)
		return one(crc, bytes, size);

	a = _mm512_xor_si512(VECTOR(0), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
	b = VECTOR(1);
	c = VECTOR(2);
	d = VECTOR(3);
	for (bytes += 256, size -= 256; size >= 256; bytes += 256, size -= 256) {
		a = FOLD(a, by_256, VECTOR(0));
		b = FOLD(b, by_256, VECTOR(1));
		c = FOLD(c, by_256, VECTOR(2));
		d = FOLD(d, by_256, VECTOR(3));
	}
	d = FOLD(FOLD(FOLD(a, by_64, b), by_64, c), by_64, d);
	for (; size >= 64; bytes += 64, size -= 64)
		d = FOLD(d, by_64, VECTOR(0));

	block = _mm512_castsi512_si128(d);
	block = FOLD_ONE(block, by_16, _mm512_extracti32x4_epi32(d, 1));
	block = FOLD_ONE(block, by_16, _mm512_extracti32x4_epi32(d, 2));
	block = FOLD_ONE(block, by_16, _mm512_extracti32x4_epi32(d, 3));
	crc = add8(0, (uint64_t)_mm_cvtsi128_si64(block));
	crc = add8(crc, (uint64_t)_mm_extract_epi64(block, 1));
	return one(crc, bytes, size);
}
#else
#define fold three
#endif

uint32_t gmem_crc32c_by(enum gmem_crc32c_way way, uint32_t crc, const void *bytes, size_t size)
{
	switch (way) {
	case GMEM_CRC32C_FOLD:
		return ~fold(~crc, bytes, size);
	case GMEM_CRC32C_THREE:
		return ~three(~crc, bytes, size);
	case GMEM_CRC32C_ONE:
		return ~one(~crc, bytes, size);
	default:
		return ~plain(~crc, bytes, size);
	}
}

uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size)
{
	return gmem_crc32c_by(best, crc, bytes, size);
}

/* ---- pieces ---- */

/* Multiplies two polynomials, modulo the polynomial. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

	for (; a; a <<= 1) {
		product ^= b & (0 - (a >> 31));
		b = b >> 1 ^ (POLYNOMIAL & (0 - (b & 1)));
	}
	return product;
}

/* To append a byte of zeros is to multiply by x to the power of 8. */
uint32_t gmem_crc32c_join(uint32_t first, uint32_t second, size_t size)
{
	uint32_t power = 1u << 23;

	for (; size; size /= 2) {
		if (size & 1)
			first = multiply(power, first);
		power = multiply(power, power);
	}
	return first ^ second;
}
