/* SPDX-License-Identifier: MIT */
/* hva: memory of this process is read and written where it may not be there */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unit.h"

#define PAGE ((uint64_t)4096)

/* Four pages of a file that has two, and one that may only be read behind them */
static char *map_file(void)
{
	int fd = memfd_create("short", MFD_CLOEXEC);
	char *hva;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(2 * PAGE)), 0);
	hva = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(hva, MAP_FAILED);
	assert_ptr_not_equal(mmap(hva + 4 * PAGE, PAGE, PROT_READ,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), MAP_FAILED);
	close(fd);
	memset(hva, 'h', 2 * PAGE);
	return hva;
}

static void check(char *hva)
{
	static char buf[4 * 4096];
	uint64_t done = 7;

	assert_ok(gmem_hva_read(hva, buf, 2 * PAGE, &done));
	assert_int_equal(done, 2 * PAGE);
	assert_int_equal(buf[2 * PAGE - 1], 'h');
	assert_ok(gmem_hva_write(hva + 5, "12345", 5, NULL));
	assert_memory_equal(hva + 4, "h12345h", 7);

	assert_refused(-EFAULT, "cannot be read", gmem_hva_read(hva + 100, buf, 3 * PAGE, &done));
	assert_int_equal(done, 2 * PAGE - 100);
	assert_refused(-EFAULT, "cannot be written", gmem_hva_write(hva + 2 * PAGE - 3, buf, 8, &done));
	assert_int_equal(done, 3);
	assert_refused(-EFAULT, "for reading only", gmem_hva_write(hva + 4 * PAGE, buf, 8, &done));
	assert_int_equal(done, 0);
	assert_ok(gmem_hva_read(hva + 4 * PAGE, buf, 8, &done));
}

/* Whatever a guest or a caller makes of an address */
static void check_wrong_addresses(char *hva)
{
	static const uint64_t wrong[] = { 8, 0xffff800000000000, 0x8000000000000000,
					  0xfffffffffffff000, 0x00ff000000000000 };
	char buf[64] = "";

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_refused(-EFAULT, "cannot be read",
			       gmem_hva_read((void *)(uintptr_t)wrong[i], buf, 8, NULL));
		assert_refused(-EFAULT, "cannot be written",
			       gmem_hva_write((void *)(uintptr_t)wrong[i], buf, 64, NULL));
		assert_refused(-EFAULT, "buf cannot",
			       gmem_hva_read(hva, (void *)(uintptr_t)wrong[i], 8, NULL));
	}
	assert_refused(-EINVAL, "hva is NULL", gmem_hva_read(NULL, buf, 8, NULL));
	assert_refused(-EINVAL, "buf is NULL", gmem_hva_write(hva, NULL, 8, NULL));
	assert_refused(-EINVAL, "wrap", gmem_hva_read((void *)UINTPTR_MAX, buf, 8, NULL));
	assert_refused(-EINVAL, "wrap", gmem_hva_read(hva, buf, UINT64_MAX, NULL));
	assert_ok(gmem_hva_read(NULL, NULL, 0, NULL));
}

/* It reports accesses to wrong addresses, whoever recovers from them. */
static bool runs_under_valgrind(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload && strstr(preload, "vgpreload");
}

static void memory_that_is_not_there_is_an_error(void **state)
{
	char *hva = map_file();

	(void)state;
	fake_boot("6.18");
	for (int recovery = 0; recovery < 2; recovery++) {
		if (recovery)
			assert_ok(gmem_recovery_enable());
		memset(hva, 'h', PAGE);
		check(hva);
		if (!runs_under_valgrind())
			check_wrong_addresses(hva);
		if (recovery)
			gmem_recovery_disable();
	}
	munmap(hva, 5 * PAGE);
	fake_halt();
}

/* Does a read here have the kernel copy? */
static bool has_kernel_copy(char *hva)
{
	uint64_t before = fake_copies();
	char buf[8];

	assert_ok(gmem_hva_read(hva, buf, sizeof(buf), NULL));
	return fake_copies() != before;
}

static void *read_blocked_and_unblocked(void *hva)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	assert_true(has_kernel_copy(hva));
	assert_ok(gmem_recovery_enable());
	assert_true(has_kernel_copy(hva));
	assert_refused(-EFAULT, "cannot be read", gmem_hva_read((char *)hva + 2 * PAGE, &set, 1, NULL));

	assert_int_equal(pthread_sigmask(SIG_UNBLOCK, &set, NULL), 0);
	assert_false(has_kernel_copy(hva));
	assert_false(has_kernel_copy(hva));
	assert_refused(-EFAULT, "cannot be read", gmem_hva_read((char *)hva + 2 * PAGE, &set, 1, NULL));
	gmem_recovery_disable();
	assert_true(has_kernel_copy(hva));
	return NULL;
}

static void *read_blocked_once_it_may(void *hva)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGSEGV);
	assert_ok(gmem_recovery_enable());
	assert_false(has_kernel_copy(hva));
	/* another user, for whom nothing changes */
	assert_ok(gmem_recovery_enable());
	gmem_recovery_disable();
	assert_false(has_kernel_copy(hva));
	gmem_recovery_disable();

	assert_int_equal(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	assert_ok(gmem_recovery_enable());
	assert_true(has_kernel_copy(hva));
	assert_refused(-EFAULT, "cannot be read", gmem_hva_read((char *)hva + 2 * PAGE, &set, 1, NULL));
	assert_int_equal(pthread_sigmask(SIG_UNBLOCK, &set, NULL), 0);
	assert_false(has_kernel_copy(hva));
	gmem_recovery_disable();
	return NULL;
}

/* While recovery is not enabled a thread may block the signals, so it is asked again. */
static void each_enabling_asks_anew(void **state)
{
	char *hva = map_file();
	pthread_t thread;

	(void)state;
	fake_boot("6.18");
	assert_int_equal(pthread_create(&thread, NULL, read_blocked_once_it_may, hva), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	munmap(hva, 5 * PAGE);
	fake_halt();
}

/* The answer is kept: what it is kept for is what a thread may not do later. */
static void a_thread_is_asked_until_it_blocks_no_signal(void **state)
{
	char *hva = map_file();
	pthread_t thread;

	(void)state;
	fake_boot("6.18");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pthread_create(&thread, NULL, read_blocked_and_unblocked, hva), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
	}
	munmap(hva, 5 * PAGE);
	fake_halt();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(a_thread_is_asked_until_it_blocks_no_signal),
	cmocka_unit_test(each_enabling_asks_anew),
	cmocka_unit_test(memory_that_is_not_there_is_an_error),
};

UNIT_MAIN(tests)
