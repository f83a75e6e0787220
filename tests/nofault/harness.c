/* SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

#define TEST_SECONDS 100

/* These tests bring their own handlers; the sanitizers' would come first. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);

const char *__asan_default_options(void)
{
	return "handle_sigbus=0:handle_segv=0";
}

const char *__tsan_default_options(void)
{
	return "handle_sigbus=0:handle_segv=0";
}

static __attribute__((unused)) uint64_t system_call_ns;

static __attribute__((unused)) void time_system_calls(void)
{
	struct timespec start, end;
	int i;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < 256; i++)
		syscall(SYS_getppid);
	clock_gettime(CLOCK_MONOTONIC, &end);
	system_call_ns = ((uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 +
			  (uint64_t)end.tv_nsec - (uint64_t)start.tv_nsec) / 256;
}

bool is_slow(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	/* An emulated machine shows itself by this. All threads get the same answer. */
	static pthread_once_t timed = PTHREAD_ONCE_INIT;

	pthread_once(&timed, time_system_calls);
	return system_call_ns > 2000;
}

/* ---- memory ---- */

enum hole hole_kind = PAST_THE_END;

/* Nothing else is mapped around here, so what is unmapped stays so. */
static char *far_away(size_t size)
{
#ifdef GMEM_NOFAULT_TSAN
	(void)size;
	return NULL;	/* it allows few addresses */
#else
	static uint64_t next = UINT64_C(1) << 45;

	next += (size + GIB - 1) / GIB * GIB;
	return (char *)(uintptr_t)next;
#endif
}

static char *map_some(char *at, size_t file_size, size_t size, int flags)
{
	int fd = (int)WORKS(memfd_create("touch", MFD_CLOEXEC));
	char *p;

	WORKS(ftruncate(fd, (off_t)file_size));
	p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
	WORKS(p == MAP_FAILED ? -1 : 0);
	close(fd);
	return p;
}

static void make_hole(char *p, size_t size)
{
	if (hole_kind == PAST_THE_END)
		map_some(p, 0, size, MAP_FIXED);
	else if (hole_kind == UNMAPPED)
		WORKS(munmap(p, size));
	else
		WORKS(mprotect(p, size, hole_kind == READ_ONLY ? PROT_READ : PROT_NONE));
}

void *map_with_hole(size_t there, size_t missing)
{
	bool ends = hole_kind == PAST_THE_END;
	char *p = map_some(far_away(there + missing), ends ? there : there + missing,
			   there + missing, 0);

	if (!ends)
		make_hole(p + there, missing);
	return p;
}

void *map_without_page(size_t size, size_t hole)
{
	char *p = map_some(far_away(size), size, size, 0);

	make_hole(p + hole, page_size());
	return p;
}

uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 7 + i / 251 + 1);
}

void fill_pattern(void *p, size_t size)
{
	uint8_t *bytes = p;
	size_t i;

	for (i = 0; i < size; i++)
		bytes[i] = pattern(i);
}

int run_tests(int argc, char **argv)
{
	return runner_main(argc, argv, TEST_SECONDS, NULL);
}
