/* SPDX-License-Identifier: MIT */
/*
 * The fast engine copies and fills in assembly. In C it finishes what a fault left over,
 * compares, and copies strings. The slow engine is all in C.
 */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include "nofault/nofault.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "os/sys.h"

#define WORD sizeof(uint64_t)

/* ---- fast: choosing the instructions ---- */

#if defined(__x86_64__)

/* nofault_x86_64.S defines these for more than 32 bytes, and jumps to the chosen ones. */
struct gmem_nofault_stop gmem_nofault_copy_sse2(void *dst, const void *src, size_t size);
struct gmem_nofault_stop gmem_nofault_copy_avx2(void *dst, const void *src, size_t size);
struct gmem_nofault_stop gmem_nofault_copy_avx512(void *dst, const void *src, size_t size);
struct gmem_nofault_stop gmem_nofault_fill_sse2(void *dst, int byte, size_t size);
struct gmem_nofault_stop gmem_nofault_fill_avx2(void *dst, int byte, size_t size);
struct gmem_nofault_stop gmem_nofault_fill_avx512(void *dst, int byte, size_t size);

extern struct gmem_nofault_stop (*gmem_nofault_copy_above_32)(void *, const void *, size_t);
extern struct gmem_nofault_stop (*gmem_nofault_fill_above_32)(void *, int, size_t);

struct gmem_nofault_stop (*gmem_nofault_copy_above_32)(void *, const void *, size_t) =
	gmem_nofault_copy_sse2;
struct gmem_nofault_stop (*gmem_nofault_fill_above_32)(void *, int, size_t) = gmem_nofault_fill_sse2;
size_t gmem_nofault_string_from = SIZE_MAX;

/* Relaxed: each pointer is a single store, and readers may see old and new ones mixed. */
static void choose(struct gmem_nofault_stop (*copy)(void *, const void *, size_t),
		   struct gmem_nofault_stop (*fill)(void *, int, size_t), size_t string_from)
{
	__atomic_store_n(&gmem_nofault_copy_above_32, copy, __ATOMIC_RELAXED);
	__atomic_store_n(&gmem_nofault_fill_above_32, fill, __ATOMIC_RELAXED);
	__atomic_store_n(&gmem_nofault_string_from, string_from, __ATOMIC_RELAXED);
}

/* ERMS: "rep movsb" moves whole cache lines at a time. Intel since 2012, AMD since 2020. */
static bool has_fast_strings(void)
{
	unsigned int a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 9);
}

/* Returns which registers the system saves: without a bit here their instructions fault. */
static unsigned int saved_registers(void)
{
	unsigned int a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 0;
	__asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return a;
}

/* Asked here: __builtin_cpu_supports() would bring 4 KiB of code about all processors. */
static unsigned int widest_vector(void)
{
	const unsigned int ymm = 1 << 1 | 1 << 2, zmm = ymm | 1 << 5 | 1 << 6 | 1 << 7;
	unsigned int saved = saved_registers(), a, b, c, d;

	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (saved & ymm) != ymm || !(b & bit_AVX2))
		return 16;
	/* Processors without VBMI2 run slower for a while after a 64-byte vector. */
	return (saved & zmm) == zmm && b & bit_AVX512VL && c & bit_AVX512VBMI2 ? 64 : 32;
}

unsigned int gmem_nofault_choose(unsigned int max)
{
	const unsigned int widest = widest_vector();
	/* Measured: the size at which string instructions begin to beat wide vectors */
	const size_t strings = has_fast_strings() ? 4 << 10 : SIZE_MAX;

	if (max >= 64 && widest == 64) {
		choose(gmem_nofault_copy_avx512, gmem_nofault_fill_avx512, strings);
		return 64;
	}
	if (max >= 32 && widest >= 32) {
		choose(gmem_nofault_copy_avx2, gmem_nofault_fill_avx2, strings);
		return 32;
	}
	/* Narrow vectors lose against string instructions sooner. */
	choose(gmem_nofault_copy_sse2, gmem_nofault_fill_sse2, strings / 4);
	return 16;
}

#else

unsigned int gmem_nofault_choose(unsigned int max)
{
	(void)max;
	return 16;
}

#endif

/* ---- fast: one access, of any alignment ---- */

static inline uint64_t load_byte(const void *p, uint8_t *ret)
{
	uint64_t fault;

#if defined(__x86_64__)
	GMEM_NOFAULT(fault, "movb (%[at]), %[value]", "=", *ret, p);
#else
	GMEM_NOFAULT(fault, "ldrb %w[value], [%[at]]", "=", *ret, p);
#endif
	return fault;
}

static inline uint64_t store_byte(void *p, uint8_t value)
{
	uint64_t fault;

#if defined(__x86_64__)
	GMEM_NOFAULT(fault, "movb %[value], (%[at])", "+", value, p);
#else
	GMEM_NOFAULT(fault, "strb %w[value], [%[at]]", "+", value, p);
#endif
	return fault;
}

static inline uint64_t load_word(const void *p, uint64_t *ret)
{
	uint64_t fault;

#if defined(__x86_64__)
	GMEM_NOFAULT(fault, "movq (%[at]), %[value]", "=", *ret, p);
#else
	GMEM_NOFAULT(fault, "ldr %[value], [%[at]]", "=", *ret, p);
#endif
	return fault;
}

static inline uint64_t store_word(void *p, uint64_t value)
{
	uint64_t fault;

#if defined(__x86_64__)
	GMEM_NOFAULT(fault, "movq %[value], (%[at])", "+", value, p);
#else
	GMEM_NOFAULT(fault, "str %[value], [%[at]]", "+", value, p);
#endif
	return fault;
}

/* Returns whether any byte of the word is 0. */
static inline bool has_nul(uint64_t word)
{
	const uint64_t ones = ~(uint64_t)0 / 0xff;

	return ((word - ones) & ~word & (ones << 7)) != 0;
}

/* ---- fast: what a fault leaves over ---- */

/*
 * Returns how many of the @size bytes at @p lie before the page that faulted: all, if the
 * page is not in this range. Access further on would only fault again, and a fault costs
 * a thousand times what this computation does.
 */
static size_t before_fault(uint64_t fault, const void *p, size_t size)
{
	uint64_t page = gmem_nofault_page(fault), start = (uintptr_t)p;

	if (page + GMEM_NOFAULT_GRAIN <= start || page >= start + size)
		return size;
	return page > start ? (size_t)(page - start) : 0;
}

static size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

/*
 * Copies byte by byte up to the page that faulted. If that page is in neither range, or
 * if another page before it cannot be reached, then the access to a byte faults, which
 * ends the loop. If every page can be reached by now, the copy is complete and succeeds.
 */
size_t gmem_nofault_finish_copy(struct gmem_nofault_stop stop, void *dst, const void *src,
				size_t size, int *ret_err)
{
	size_t end = min_size(before_fault(stop.fault, dst, size),
			      before_fault(stop.fault, src, size));
	const uint8_t *from = src;
	uint8_t *to = dst;
	size_t done = stop.done;
	uint64_t fault;
	uint8_t byte;

	for (; done < end; done++) {
		fault = load_byte(from + done, &byte);
		if (!fault)
			fault = store_byte(to + done, byte);
		if (fault) {
			*ret_err = gmem_nofault_errno(fault);
			return done;
		}
	}

	*ret_err = done < size ? gmem_nofault_errno(stop.fault) : 0;
	return done;
}

size_t gmem_nofault_finish_fill(struct gmem_nofault_stop stop, void *dst, int byte, size_t size,
				int *ret_err)
{
	size_t end = before_fault(stop.fault, dst, size);
	size_t done = stop.done;
	uint8_t *to = dst;
	uint64_t fault;

	for (; done < end; done++) {
		fault = store_byte(to + done, (uint8_t)byte);
		if (fault) {
			*ret_err = gmem_nofault_errno(fault);
			return done;
		}
	}

	*ret_err = done < size ? gmem_nofault_errno(stop.fault) : 0;
	return done;
}

/* ---- fast: compare, string ---- */

static size_t fast_compare(const void *a, const void *b, size_t size, int *ret_cmp, int *ret_err)
{
	const uint8_t *left = a, *right = b;
	size_t done = 0, end = size;
	uint64_t x, y, fault;
	uint8_t p, q;

	*ret_cmp = 0;
	*ret_err = 0;

	for (; size - done >= WORD; done += WORD) {
		fault = load_word(left + done, &x);
		if (!fault)
			fault = load_word(right + done, &y);
		if (fault) {
			*ret_err = gmem_nofault_errno(fault);
			end = min_size(before_fault(fault, a, size), before_fault(fault, b, size));
			break;
		}
		if (x != y)
			break;
	}

	for (; done < end; done++) {
		fault = load_byte(left + done, &p);
		if (!fault)
			fault = load_byte(right + done, &q);
		if (fault) {
			*ret_err = gmem_nofault_errno(fault);
			return done;
		}
		if (p != q) {
			*ret_cmp = p < q ? -1 : 1;
			break;
		}
	}

	if (done == size || *ret_cmp)
		*ret_err = 0;
	return done;
}

static size_t fast_string(char *dst, const char *src, size_t max, int *ret_err)
{
	size_t done = 0;
	uint64_t word, fault;
	uint8_t byte;

	*ret_err = 0;

	while (done < max) {
		/* An aligned word lies in one page, so it cannot reach past the NUL's page. */
		if (max - done >= WORD && (uintptr_t)(src + done) % WORD == 0 &&
		    !load_word(src + done, &word) && !has_nul(word) &&
		    !store_word(dst + done, word)) {
			done += WORD;
			continue;
		}

		fault = load_byte(src + done, &byte);
		if (!fault && byte)
			fault = store_byte(dst + done, byte);
		if (fault || !byte) {
			*ret_err = gmem_nofault_errno(fault);
			break;
		}
		done++;
	}

	return done;
}

/* ---- slow: the kernel copies ---- */

/* One system call moves less than 2 GiB (MAX_RW_COUNT in the kernel). */
#define SLOW_MAX ((size_t)1 << 30)
#define SLOW_CHUNK (4 << 10)

static size_t to_page_end(const void *p)
{
	uint64_t page = gmem_sys_page_size();

	return (size_t)(page - (uintptr_t)p % page);
}

/*
 * The kernel stops at a page that it cannot reach, but may also stop earlier, or return
 * -EFAULT before it copied anything. Then this tries the bytes that lie within one page on
 * both sides. If those cannot be copied, the first of them cannot be reached.
 */
size_t gmem_nofault_slow_copy(void *dst, const void *src, size_t size, int *ret_err)
{
	size_t done = 0, in_page;
	int64_t n;

	while (done < size) {
		char *to = (char *)dst + done;
		const char *from = (const char *)src + done;

		n = gmem_sys_process_vm_readv(to, from, min_size(size - done, SLOW_MAX));
		if (n <= 0) {
			in_page = min_size(min_size(to_page_end(to), to_page_end(from)), size - done);
			n = gmem_sys_process_vm_readv(to, from, in_page);
		}
		if (n <= 0) {
			*ret_err = n ? (int)n : -EFAULT;
			return done;
		}
		done += (size_t)n;
	}

	*ret_err = 0;
	return done;
}

size_t gmem_nofault_slow_fill(void *dst, int byte, size_t size, int *ret_err)
{
	char chunk[SLOW_CHUNK];
	size_t done = 0, n;

	*ret_err = 0;
	memset(chunk, byte, min_size(size, sizeof(chunk)));

	while (done < size && !*ret_err) {
		n = min_size(size - done, sizeof(chunk));
		done += gmem_nofault_slow_copy((char *)dst + done, chunk, n, ret_err);
	}
	return done;
}

static size_t slow_compare(const void *a, const void *b, size_t size, int *ret_cmp, int *ret_err)
{
	uint8_t left[SLOW_CHUNK], right[SLOW_CHUNK];
	size_t done = 0, n, m, i;
	int err_left, err_right;

	*ret_cmp = 0;
	*ret_err = 0;

	while (done < size && !*ret_err && !*ret_cmp) {
		n = min_size(size - done, sizeof(left));
		n = gmem_nofault_slow_copy(left, (const char *)a + done, n, &err_left);
		m = gmem_nofault_slow_copy(right, (const char *)b + done, n, &err_right);

		for (i = 0; i < m && left[i] == right[i]; i++)
			;
		done += i;
		if (i < m)
			*ret_cmp = left[i] < right[i] ? -1 : 1;
		else
			*ret_err = m < n ? err_right : err_left;
	}
	/* For core dumps, which have the stack. */
	explicit_bzero(left, sizeof(left));
	explicit_bzero(right, sizeof(right));
	return done;
}

static size_t slow_string(char *dst, const char *src, size_t max, int *ret_err)
{
	char chunk[SLOW_CHUNK];
	size_t done = 0, n, text;
	bool has_ended = false;
	int err;

	*ret_err = 0;

	while (done < max && !has_ended && !*ret_err) {
		/* Stop at the end of the page: the next one may be missing, behind the NUL. */
		n = min_size(min_size(max - done, sizeof(chunk)), to_page_end(src + done));
		n = gmem_nofault_slow_copy(chunk, src + done, n, &err);
		text = strnlen(chunk, n);
		done += gmem_nofault_slow_copy(dst + done, chunk, text, ret_err);
		has_ended = text < n;
		if (!has_ended && !*ret_err)
			*ret_err = err;
	}
	explicit_bzero(chunk, sizeof(chunk));
	return done;
}

static const char needs_recovery[] = "process_vm_readv(2) is refused, which copies unless "
				     "gmem_recovery_enable() was called";

int gmem_nofault_probe(const void *p, size_t size)
{
	uint64_t word;
	int64_t n = gmem_sys_process_vm_readv(&word, p, size);

	return n < 0 ? (int)n : (size_t)n < size ? -EFAULT : 0;
}

/* To read first keeps the write away from device memory, where it would not be without effect. */
int gmem_nofault_probe_write(void *p, size_t size)
{
	int err = gmem_nofault_probe(p, size);

	return err ? err : gmem_sys_write_nothing((char *)p - (uintptr_t)p % sizeof(uint32_t));
}

bool gmem_nofault_is_lost(const void *p, int err)
{
	uint64_t page = gmem_sys_page_size();
	char *start = (char *)(uintptr_t)p - (uintptr_t)p % page;

	return err == -EHWPOISON ||
	       (err == -EFAULT && gmem_sys_madvise(start, page, MADV_POPULATE_READ) == -EHWPOISON);
}

int gmem_nofault_check_slow(void)
{
	const uint64_t word = 0;
	int err = gmem_nofault_probe(&word, sizeof(word));

	return err ? gmem_fail(err, "%s: %s", needs_recovery, gmem_errno_name(err)) : 0;
}

/* Of the slow engine: which call is refused, also for memory that is there */
static const char *why_refused(bool writes, int err)
{
	uint64_t word = 0;

	if (gmem_nofault_probe(&word, sizeof(word)) == err)
		return needs_recovery;
	if (writes && gmem_nofault_probe_write(&word, sizeof(word)) == err)
		return "futex(2) is refused, by which the kernel is asked unless gmem_recovery_enable() was called";
	return NULL;
}

const char *gmem_nofault_why(const void *p, bool writes, int err)
{
	if (err == -EHWPOISON)
		return "the hardware lost the page";
	if (err != -EFAULT)
		return why_refused(writes, err);
	if (gmem_nofault_probe(p, 1))
		return "no page of memory is there, or it is mapped without the permission or not at all";
	if (writes && gmem_nofault_probe_write((void *)(uintptr_t)p, 1))
		return "it is mapped for reading only";
	return NULL;
}

/* ---- both engines ---- */

size_t gmem_nofault_compare(bool fast, const void *a, const void *b, size_t size, int *ret_cmp,
			    int *ret_err)
{
	return fast ? fast_compare(a, b, size, ret_cmp, ret_err) :
		      slow_compare(a, b, size, ret_cmp, ret_err);
}

size_t gmem_nofault_string(bool fast, char *dst, const char *src, size_t max, int *ret_err)
{
	return fast ? fast_string(dst, src, max, ret_err) : slow_string(dst, src, max, ret_err);
}
