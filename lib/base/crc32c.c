/* SPDX-License-Identifier: MIT */
/*
 * The CRC instruction takes three cycles, and a processor can begin one in each cycle.
 * Therefore the fast path computes the CRCs of three stretches side by side, and combines
 * them by multiplying in the field of the polynomial.
 */
#include "base/crc32c.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* In this file the highest bit of a word is the lowest power of a polynomial. */
#define POLYNOMIAL 0x82f63b78u
#define STRETCH ((size_t)4096)

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

/* ---- with the instruction ---- */

#if defined(__x86_64__)
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define add8(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define add1(crc, byte) _mm_crc32_u8((crc), (byte))

/* Set before main(), as hypervisors take their time over the instruction that tells. */
static bool has_sse42;

__attribute__((constructor)) static void ask_processor(void)
{
	unsigned int a, b, c, d;

	has_sse42 = __get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_2;
}

static bool has_instruction(void)
{
	return has_sse42;
}
#elif defined(__aarch64__)
#ifdef __clang__
#define WITH_INSTRUCTION __attribute__((target("crc")))
#else
#define WITH_INSTRUCTION __attribute__((target("+crc")))
#endif
#define add8(crc, word) __builtin_aarch64_crc32cx((crc), (word))
#define add1(crc, byte) __builtin_aarch64_crc32cb((crc), (byte))
#ifdef __clang__
#undef add8
#undef add1
#define add8(crc, word) __builtin_arm_crc32cd((crc), (word))
#define add1(crc, byte) __builtin_arm_crc32cb((crc), (byte))
#endif

static bool has_instruction(void)
{
	return getauxval(AT_HWCAP) & HWCAP_CRC32;
}
#endif

static uint64_t word_at(const unsigned char *bytes)
{
	uint64_t word;

	memcpy(&word, bytes, sizeof(word));
	return word;
}

/* Multiplies two polynomials, modulo POLYNOMIAL. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

	for (; a; a <<= 1) {
		product ^= a >> 31 ? b : 0;
		b = b >> 1 ^ (b & 1 ? POLYNOMIAL : 0);
	}
	return product;
}

/*
 * Returns x to the power of the bits in a stretch. Multiplying a CRC by it appends a
 * stretch of zeros. The exponent is a power of two, so squaring gets there.
 */
static uint32_t stretch_of_zeros(void)
{
	uint32_t power = 1u << 30;	/* x */

	for (size_t bits = 1; bits < 8 * STRETCH; bits *= 2)
		power = multiply(power, power);
	return power;
}

WITH_INSTRUCTION
static uint32_t three_stretches(uint32_t crc, uint32_t zeros, const unsigned char *bytes)
{
	uint32_t second = 0, third = 0;

	for (size_t i = 0; i < STRETCH; i += 8) {
		crc = add8(crc, word_at(bytes + i));
		second = add8(second, word_at(bytes + STRETCH + i));
		third = add8(third, word_at(bytes + 2 * STRETCH + i));
	}
	return multiply(zeros, multiply(zeros, crc) ^ second) ^ third;
}

WITH_INSTRUCTION
static uint32_t fast(uint32_t crc, const unsigned char *bytes, size_t size)
{
	uint32_t zeros = size >= 3 * STRETCH ? stretch_of_zeros() : 0;

	for (; size >= 3 * STRETCH; size -= 3 * STRETCH, bytes += 3 * STRETCH)
		crc = three_stretches(crc, zeros, bytes);
	for (; size >= 8; size -= 8, bytes += 8)
		crc = add8(crc, word_at(bytes));
	for (; size; size--)
		crc = add1(crc, *bytes++);
	return crc;
}

uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size)
{
	return ~(has_instruction() ? fast(~crc, bytes, size) : plain(~crc, bytes, size));
}

uint32_t gmem_crc32c_plain(uint32_t crc, const void *bytes, size_t size)
{
	return ~plain(~crc, bytes, size);
}
