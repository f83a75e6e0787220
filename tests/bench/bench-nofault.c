/* SPDX-License-Identifier: MIT */
/*
 * bench-nofault: what it costs to touch memory that may not be there.
 *
 * Every sample has its twin, the plain access, right before or right after it,
 * so that whatever else the machine does hits both. The figure is the median of
 * the ratios of the pairs. Time is the CPU time of this thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gmem.h>

#include "bench.h"
#include "nofault/nofault.h"
#include "os/sys.h"

#define ROUNDS_MIN 101
#define SAMPLE_NS  20000.0	/* of work between two looks at the clock */

static const char usage[] =
	"usage: bench-nofault [ROUNDS]\n"
	"\n"
	"Compares the library's accesses that survive SIGBUS with plain ones:\n"
	"\n"
	"  copy, fill     against memcpy() and memset(), hot\n"
	"  load, store    and cmpxchg, against the compiler's atomics\n"
	"  fault          8 bytes of a missing page, and 8000 bytes of which the\n"
	"                 last 4000 are missing, against process_vm_readv()\n"
	"  slow           8 bytes with the engine that asks the kernel, against memcpy()\n"
	"\n"
	"Columns: nanoseconds of CPU time, plain and with libgmem, and their ratio (of\n"
	"pairs, measured back to back): medians, with the quartiles.\n"
	"ROUNDS pairs for each line: at least 101, by default 501.\n"
	"\n"
	"Exit status: 0, or 1 if something failed.\n";

static char *to, *from, *missing;
static size_t size;
static uint64_t word;

/* Called, not expanded: the size is not known where the library copies. */
static void *(*volatile plain_memcpy)(void *, const void *, size_t) = memcpy;
static void *(*volatile plain_memset)(void *, int, size_t) = memset;

static inline void safe_copy(void *dst, const void *src, size_t n)
{
	int err;

	if (gmem_nofault_copy(true, dst, src, n, &err) != n)
		abort();
}

static inline void safe_fill(void *dst, int byte, size_t n)
{
	int err;

	if (gmem_nofault_fill(true, dst, byte, n, &err) != n)
		abort();
}

static void do_memcpy(unsigned long n)
{
	while (n--)
		plain_memcpy(to, from, size);
}

static void do_copy(unsigned long n)
{
	while (n--)
		safe_copy(to, from, size);
}

static void do_memset(unsigned long n)
{
	while (n--)
		plain_memset(to, 5, size);
}

static void do_fill(unsigned long n)
{
	while (n--)
		safe_fill(to, 5, size);
}

static void do_plain_load(unsigned long n)
{
	while (n--)
		(void)*(volatile uint64_t *)&(uint64_t){ __atomic_load_n(&word, __ATOMIC_ACQUIRE) };
}

static void do_load(unsigned long n)
{
	uint64_t value = 0;

	while (n--) {
		if (gmem_nofault_load64(true, &word, __ATOMIC_ACQUIRE, &value))
			abort();
		(void)*(volatile uint64_t *)&(uint64_t){ value };
	}
}

static void do_plain_store(unsigned long n)
{
	while (n--)
		__atomic_store_n(&word, n, __ATOMIC_RELEASE);
}

static void do_store(unsigned long n)
{
	while (n--) {
		if (gmem_nofault_store64(true, &word, n, __ATOMIC_RELEASE))
			abort();
	}
}

static void do_plain_store_seq(unsigned long n)
{
	while (n--)
		__atomic_store_n(&word, n, __ATOMIC_SEQ_CST);
}

static void do_store_seq(unsigned long n)
{
	while (n--) {
		if (gmem_nofault_store64(true, &word, n, __ATOMIC_SEQ_CST))
			abort();
	}
}

static void do_plain_cmpxchg(unsigned long n)
{
	uint64_t seen = word;

	while (n--)
		__atomic_compare_exchange_n(&word, &seen, n, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_SEQ_CST);
}

static void do_cmpxchg(unsigned long n)
{
	uint64_t seen = word;
	int swapped;

	while (n--) {
		if (gmem_nofault_cmpxchg64(true, &word, &seen, n, __ATOMIC_SEQ_CST, &swapped))
			abort();
	}
}

static void do_readv_fault(unsigned long n)
{
	while (n--) {
		if (gmem_sys_process_vm_readv(to, missing, 8) != -EFAULT)
			abort();
	}
}

static void do_fault(unsigned long n)
{
	int err;

	while (n--) {
		if (gmem_nofault_copy(true, to, missing, 8, &err) || err != -EFAULT)
			abort();
	}
}

static void do_edge(unsigned long n)
{
	int err;

	while (n--) {
		if (gmem_nofault_copy(true, to, missing - 4000, 8000, &err) != 4000)
			abort();
	}
}

static void do_slow(unsigned long n)
{
	int err;

	while (n--) {
		if (gmem_nofault_copy(false, to, from, size, &err) != size)
			abort();
	}
}

static double time_of(void (*run)(unsigned long), unsigned long n)
{
	double start = bench_thread_ns();

	run(n);
	return (bench_thread_ns() - start) / (double)n;
}

static unsigned int rounds = 501;

static void compare(const char *name, size_t bytes, const char *base,
		    void (*plain)(unsigned long), void (*safe)(unsigned long), double goal)
{
	double *plains = calloc(3 * rounds, sizeof(*plains));
	double *safes = plains + rounds, *ratios = safes + rounds;
	unsigned long n = 1;
	unsigned int i;

	if (!plains)
		exit(EXIT_FAILURE);
	size = bytes;
	while (time_of(plain, n) * (double)n < (bench_quick() ? SAMPLE_NS / 10 : SAMPLE_NS))
		n *= 2;
	time_of(safe, n);

	for (i = 0; i < rounds; i++) {
		if (i % 2) {
			plains[i] = time_of(plain, n);
			safes[i] = time_of(safe, n);
		} else {
			safes[i] = time_of(safe, n);
			plains[i] = time_of(plain, n);
		}
		ratios[i] = safes[i] / plains[i];
	}

	bench_row("nofault/%s/%zu", name, bytes);
	bench_row_figure(bench_quartiles_of(safes, rounds), "ns");
	printf("%-18s %8zu", name, bytes);
	bench_print(bench_quartiles_of(plains, rounds));
	bench_print(bench_quartiles_of(safes, rounds));
	bench_print_against(base, bench_quartiles_of(ratios, rounds), goal);
	printf("\n");
	free(plains);
}

static char *map(size_t there, size_t gone)
{
	int fd = memfd_create("bench", MFD_CLOEXEC);
	char *p;

	if (fd < 0 || ftruncate(fd, (off_t)there))
		exit(EXIT_FAILURE);
	p = mmap(NULL, there + gone, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		exit(EXIT_FAILURE);
	close(fd);
	memset(p, 1, there);
	return p;
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = {
		1, 8, 24, 64, 128, 256, 512, 1024, 2048, 4096, 65536, 1 << 20,
	};
	size_t room = (size_t)2 << 20, i;

	if (argc > 2 || (argc == 2 && atoi(argv[1]) < ROUNDS_MIN)) {
		fputs(usage, argc == 2 && !strcmp(argv[1], "--help") ? stdout : stderr);
		return argc == 2 && !strcmp(argv[1], "--help") ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	if (argc == 2)
		rounds = (unsigned int)atoi(argv[1]);
	else if (bench_quick())
		rounds = 3;
	if (gmem_recovery_enable()) {
		fprintf(stderr, "bench-nofault: %s\n", gmem_last_error());
		return EXIT_FAILURE;
	}

	to = map(room, 0);
	from = map(room, 65536);
	missing = from + room;

	printf("%-18s %8s", "", "bytes");
	bench_print_column("plain ns");
	bench_print_column("libgmem ns");
	bench_print_column("libgmem/plain");
	printf("\n");
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		compare("copy", sizes[i], "memcpy", do_memcpy, do_copy, sizes[i] < 8 ? 0 : 1.1);
	from += 7;
	to += 3;
	for (i = 1; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		compare("copy-unaligned", sizes[i], "memcpy", do_memcpy, do_copy, 0);
	from -= 7;
	to -= 3;
	for (i = 1; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		compare("fill", sizes[i], "memset", do_memset, do_fill, 0);
	compare("load-acquire", 8, "plain", do_plain_load, do_load, 0);
	compare("store-release", 8, "plain", do_plain_store, do_store, 0);
	compare("store-seq_cst", 8, "plain", do_plain_store_seq, do_store_seq, 0);
	compare("cmpxchg", 8, "plain", do_plain_cmpxchg, do_cmpxchg, 0);
	compare("fault", 8, "process_vm_readv", do_readv_fault, do_fault, 5);
	compare("fault", 8000, "process_vm_readv", do_readv_fault, do_edge, 0);
	compare("slow", 8, "memcpy", do_memcpy, do_slow, 0);
	compare("slow", 4096, "memcpy", do_memcpy, do_slow, 0);
	bench_print_goals();
	return EXIT_SUCCESS;
}
