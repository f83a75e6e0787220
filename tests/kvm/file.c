/* SPDX-License-Identifier: MIT */
/* One guest_memfd: sizes, flags, adoption, allocation, and what the kernel refuses */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"
#include "harness.h"

#define SHARED_FLAGS (GMEM_CREATE_MMAP | GMEM_CREATE_INIT_SHARED)

/* How many of the create flag sets 0, 1, 2, 3 are legal depends on the VM. */
#define FLAG_SETS 4

static bool is_legal(const struct machine *m, uint64_t flags)
{
	const struct expect_vm *vm = expect_vm(m->type);

	if (flags == GMEM_CREATE_MMAP)
		return vm->creates_mmap;
	return vm->creates && !(flags & ~(uint64_t)vm->create_flags);
}

static struct gmem_file *new_file(const struct machine *m, uint64_t pages, uint64_t flags)
{
	struct gmem_file *file = NULL;

	OK(gmem_file_new_raw(m->vm_fd, pages * page_size(), flags, &file));
	CHECK(file);
	return file;
}

/* Any file at all: the flags that every guest_memfd VM can have */
static struct gmem_file *plain_file(const struct machine *m, uint64_t pages)
{
	require_guest_memfd(m);
	return new_file(m, pages, 0);
}

static struct gmem_file *shared_file(const struct machine *m, uint64_t pages)
{
	require_create_flags(m, SHARED_FLAGS);
	return new_file(m, pages, SHARED_FLAGS);
}

/* ---- creation ---- */

static void check_create(const struct machine *m, uint64_t flags)
{
	struct gmem_file *file = NULL;

	if (is_legal(m, flags)) {
		file = new_file(m, 1, flags);
		CHECK_EQ(gmem_file_create_flags(file), flags);
		CHECK_EQ(gmem_file_size(file), page_size());
		CHECK(gmem_file_fd(file) >= 0);
		gmem_file_free(file);
		return;
	}

#ifdef __x86_64__
	if (!expect_vm(m->type)->creates) {
		REFUSED(gmem_file_new_raw(m->vm_fd, page_size(), flags, &file), -ENOTTY);
		return;
	}
#endif
	/* arm64 says this of an ioctl it does not know, too */
	REFUSED(gmem_file_new_raw(m->vm_fd, page_size(), flags, &file), -EINVAL);
	CHECK(!file);
}

static void check_every_flag(int type)
{
	struct machine m;

	machine_new(&m, type);
	for (uint64_t flags = 0; flags < 8; flags++)
		check_create(&m, flags);
	for (int bit = 3; bit < 64; bit++)
		check_create(&m, (uint64_t)1 << bit);
	check_create(&m, UINT64_MAX);
	machine_free(&m);
}

TEST(only_the_offered_create_flags_are_accepted)
{
	check_every_flag(DEFAULT_VM);
}

TEST(only_the_offered_create_flags_are_accepted_with_private_memory)
{
	check_every_flag(PRIVATE_VM);
}

TEST(a_size_must_be_whole_host_pages)
{
	uint64_t page = page_size();
	const uint64_t bad[] = {
		0, 1, page / 2, page - 1, page + 1, page + page / 2, (uint64_t)1 << 63,
		((uint64_t)1 << 63) + page, UINT64_MAX - page + 1, UINT64_MAX,
	};
	struct gmem_file *file = NULL;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		REFUSED(gmem_file_new_raw(m.vm_fd, bad[i], 0, &file), -EINVAL);
		CHECK(!file);
	}
	machine_free(&m);
}

TEST(a_file_may_be_as_large_as_offsets_go)
{
	const uint64_t sizes[] = { page_size(), 3 * page_size(), GIB, (uint64_t)1 << 50,
				   ((uint64_t)1 << 63) - page_size() };
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		OK(gmem_file_new_raw(m.vm_fd, sizes[i], 0, &file));
		CHECK_EQ(gmem_file_size(file), sizes[i]);
		gmem_file_free(file);
	}
	machine_free(&m);
}

TEST(a_plan_creates_with_its_own_flags)
{
	static const uint32_t ways[] = { GMEM_BACKING_MAPPED, GMEM_BACKING_SHARED };
	struct gmem_plan *plan;
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		require_backing(&m, ways[i], &plan);
		OK(gmem_file_new(m.vm_fd, page_size(), plan, &file));
		CHECK_EQ(gmem_file_create_flags(file), SHARED_FLAGS);
		gmem_file_free(file);
		gmem_plan_free(plan);
	}
	machine_free(&m);
}

TEST(a_plan_without_guest_memfd_creates_no_file)
{
	struct gmem_file *file = NULL;
	struct gmem_plan *plan;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_backing(&m, GMEM_BACKING_HOST, &plan);
	REFUSED(gmem_file_new(m.vm_fd, page_size(), plan, &file), -EINVAL);
	CHECK(!file);
	gmem_plan_free(plan);
	machine_free(&m);
}

TEST(files_are_created_only_on_a_vm)
{
	struct gmem_file *file = NULL;
	int pipes[2];

	WORKS(pipe(pipes));
	REFUSED(gmem_file_new_raw(-1, page_size(), 0, &file), -EBADF);
	REFUSED(gmem_file_new_raw(pipes[0], page_size(), 0, &file), -ENOTTY);
	CHECK(!file);
	close(pipes[0]);
	close(pipes[1]);
}

TEST(a_vm_has_many_files_of_all_kinds)
{
	struct gmem_file *files[32];
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		uint64_t flags = i % FLAG_SETS;

		files[i] = new_file(&m, i + 1, is_legal(&m, flags) ? flags : 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		for (size_t j = 0; j < i; j++)
			CHECK(gmem_file_fd(files[i]) != gmem_file_fd(files[j]));
		CHECK_EQ(gmem_file_size(files[i]), (i + 1) * page_size());
	}
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		gmem_file_free(files[i]);
	machine_free(&m);
}

TEST(a_full_fd_table_is_reported)
{
	struct gmem_file *file = NULL;
	struct rlimit limit;
	struct machine m;
	int last;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	/* The lowest free fd is the first that is too many. */
	last = (int)WORKS(dup(m.vm_fd));
	close(last);
	WORKS(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = (rlim_t)last;
	WORKS(setrlimit(RLIMIT_NOFILE, &limit));
	REFUSED(gmem_file_new_raw(m.vm_fd, page_size(), 0, &file), -EMFILE);
	CHECK(!file);
	limit.rlim_cur = limit.rlim_max;
	WORKS(setrlimit(RLIMIT_NOFILE, &limit));
	machine_free(&m);
}

TEST(a_vm_of_another_process_makes_no_file)
{
	struct gmem_file *file = NULL;
	struct machine m;
	int status;
	pid_t pid;

	machine_new(&m, DEFAULT_VM);
	require_guest_memfd(&m);
	pid = fork();
	if (!pid)
		_exit(gmem_file_new_raw(m.vm_fd, page_size(), 0, &file) == -EIO ? 0 : 1);
	WORKS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
	machine_free(&m);
}

/* ---- what it is ---- */

TEST(stat_tells_the_size_and_nothing_of_allocation)
{
	struct gmem_file *file;
	struct machine m;
	struct stat st;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 4);
	OK(gmem_file_allocate(file, 0, 2 * page_size(), NULL));
	WORKS(fstat(gmem_file_fd(file), &st));
	CHECK_EQ(st.st_size, 4 * page_size());
	CHECK_EQ(st.st_mode, S_IFREG | 0600);
	CHECK_EQ(st.st_blksize, page_size());
	CHECK_EQ(st.st_blocks, 0);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(the_filesystem_tells_whether_mbind_works)
{
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 1);
	CHECK_EQ(is_gmem_filesystem(gmem_file_fd(file)), expect()->mbind_works);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(the_fd_is_read_write_and_cannot_be_opened_again)
{
	struct gmem_file *file;
	struct machine m;
	char path[40];

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 1);
	CHECK_EQ(WORKS(fcntl(gmem_file_fd(file), F_GETFL)) & O_ACCMODE, O_RDWR);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", gmem_file_fd(file));
	CHECK_RESULT(SYS(open(path, O_RDONLY)), -ENXIO);
	gmem_file_free(file);
	machine_free(&m);
}

/* A program started by this one with "--is-open FD" says whether FD is open there. */
static bool is_open_after_exec(int fd)
{
	char number[12];
	int status;
	pid_t pid;

	snprintf(number, sizeof(number), "%d", fd);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		execl("/proc/self/exe", "file", "--is-open", number, (char *)NULL);
		_exit(99);
	}
	WORKS(waitpid(pid, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
	return WEXITSTATUS(status);
}

TEST(an_fd_does_not_survive_exec)
{
	struct gmem_file *file, *adopted;
	struct machine m;
	int raw;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 1);
	CHECK_EQ(WORKS(fcntl(gmem_file_fd(file), F_GETFD)) & FD_CLOEXEC, FD_CLOEXEC);
	CHECK(!is_open_after_exec(gmem_file_fd(file)));

	/* The kernel's own fd survives exec(); an adopted copy of it does not. */
	raw = (int)WORKS(raw_create(m.vm_fd, page_size(), 0));
	CHECK(is_open_after_exec(raw));
	OK(gmem_file_adopt(GMEM_NO_VM, raw, NULL, &adopted));
	CHECK(!is_open_after_exec(gmem_file_fd(adopted)));

	gmem_file_free(adopted);
	close(raw);
	gmem_file_free(file);
	machine_free(&m);
}

/* ---- what it is not ---- */

TEST(reading_and_writing_the_fd_is_refused)
{
	char byte = 'x';
	struct iovec one = { &byte, 1 };
	struct gmem_file *file;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 1);
	fd = gmem_file_fd(file);
	CHECK_RESULT(SYS(read(fd, &byte, 1)), -EINVAL);
	CHECK_RESULT(SYS(write(fd, &byte, 1)), -EINVAL);
	CHECK_RESULT(SYS(readv(fd, &one, 1)), -EINVAL);
	CHECK_RESULT(SYS(writev(fd, &one, 1)), -EINVAL);
	CHECK_RESULT(SYS(pread(fd, &byte, 1, 0)), -ESPIPE);
	CHECK_RESULT(SYS(pwrite(fd, &byte, 1, 0)), -ESPIPE);
	CHECK_RESULT(SYS(lseek(fd, 0, SEEK_SET)), -ESPIPE);
	CHECK_RESULT(SYS(lseek(fd, 0, SEEK_CUR)), -ESPIPE);
	CHECK_RESULT(SYS(lseek(fd, 0, SEEK_END)), -ESPIPE);
	CHECK_RESULT(SYS(lseek(fd, 0, SEEK_DATA)), -ESPIPE);
	CHECK_RESULT(SYS(lseek(fd, 0, SEEK_HOLE)), -ESPIPE);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(copying_through_the_fd_is_refused)
{
	struct gmem_file *file;
	struct machine m;
	int fd, other, pipes[2];
	off_t offset = 0;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 1);
	fd = gmem_file_fd(file);
	other = (int)WORKS(memfd_create("other", MFD_CLOEXEC));
	WORKS(ftruncate(other, (off_t)page_size()));
	WORKS(pipe(pipes));
	CHECK_RESULT(SYS(sendfile(other, fd, &offset, 1)), -ESPIPE);
	CHECK_RESULT(SYS(splice(fd, NULL, pipes[1], NULL, 1, 0)), -EINVAL);
	CHECK_RESULT(SYS(copy_file_range(other, NULL, fd, NULL, 1, 0)), -EXDEV);
	close(pipes[0]);
	close(pipes[1]);
	close(other);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(changing_the_fd_is_refused)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct gmem_file *file;
	struct machine m;
	int fd, epoll, count = 0;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 2);
	fd = gmem_file_fd(file);
	CHECK_RESULT(SYS(ftruncate(fd, (off_t)page_size())), -EINVAL);
	CHECK_RESULT(SYS(ftruncate(fd, (off_t)(2 * page_size()))), -EINVAL);
	CHECK_RESULT(SYS(ftruncate(fd, (off_t)(3 * page_size()))), -EINVAL);
	CHECK_RESULT(SYS(fchmod(fd, 0644)), -EINVAL);
	CHECK_RESULT(SYS(fchown(fd, 1, 1)), -EINVAL);
	CHECK_RESULT(SYS(futimens(fd, NULL)), -EINVAL);
	CHECK_RESULT(SYS(fsync(fd)), -EINVAL);
	CHECK_RESULT(SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)), -EINVAL);
	CHECK_RESULT(SYS(fcntl(fd, F_GET_SEALS)), -EINVAL);
	CHECK_RESULT(SYS(fcntl(fd, F_SETFL, O_DIRECT)), -EINVAL);
	CHECK_RESULT(SYS(ioctl(fd, KVM_CHECK_EXTENSION, &count)), -ENOTTY);
	CHECK_RESULT(SYS(flock(fd, LOCK_EX)), 0);
	epoll = (int)WORKS(epoll_create1(EPOLL_CLOEXEC));
	CHECK_RESULT(SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)), -EPERM);
	CHECK_EQ(gmem_file_size(file), 2 * page_size());
	close(epoll);
	gmem_file_free(file);
	machine_free(&m);
}

/* ---- allocating and punching ---- */

/* <linux/falloc.h> of newer kernels */
#define MODE_WRITE_ZEROES 0x80

TEST(fallocate_knows_only_allocating_and_punching)
{
	static const struct {
		int mode;
		int wanted;
	} modes[] = {
		{ FALLOC_FL_KEEP_SIZE, 0 },
		{ FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0 },
		{ 0, -EOPNOTSUPP },
		{ FALLOC_FL_PUNCH_HOLE, -EOPNOTSUPP },
		{ FALLOC_FL_COLLAPSE_RANGE, -EOPNOTSUPP },
		{ FALLOC_FL_INSERT_RANGE, -EOPNOTSUPP },
		{ FALLOC_FL_ZERO_RANGE, -EOPNOTSUPP },
		{ FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, -EOPNOTSUPP },
		{ FALLOC_FL_UNSHARE_RANGE, -EOPNOTSUPP },
		{ MODE_WRITE_ZEROES, -EOPNOTSUPP },
		{ 0x4000, -EOPNOTSUPP },
	};
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 2);
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		in_case("mode 0x%x", (unsigned int)modes[i].mode);
		CHECK_RESULT(SYS(fallocate(gmem_file_fd(file), modes[i].mode, 0,
					   (off_t)page_size())), modes[i].wanted);
	}
	gmem_file_free(file);
	machine_free(&m);
}

TEST(fallocate_ranges_are_host_pages)
{
	const int allocate = FALLOC_FL_KEEP_SIZE;
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	off_t page = (off_t)page_size();
	struct gmem_file *file;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 2);
	fd = gmem_file_fd(file);
	CHECK_RESULT(SYS(fallocate(fd, allocate, page / 2, page)), -EINVAL);
	CHECK_RESULT(SYS(fallocate(fd, allocate, 0, page / 2)), -EINVAL);
	CHECK_RESULT(SYS(fallocate(fd, allocate, 0, 0)), -EINVAL);
	CHECK_RESULT(SYS(fallocate(fd, allocate, 2 * page, page)), -EINVAL);
	CHECK_RESULT(SYS(fallocate(fd, punch, page / 2, page)), -EINVAL);
	CHECK_RESULT(SYS(fallocate(fd, punch, 0, page / 2)), -EINVAL);
	/* past the end, and across it: the kernel does not mind */
	CHECK_RESULT(SYS(fallocate(fd, punch, 2 * page, page)), 0);
	CHECK_RESULT(SYS(fallocate(fd, punch, page, 2 * page)), 0);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(allocate_and_punch_refuse_what_is_not_in_the_file)
{
	uint64_t page = page_size(), done = 77;
	const struct {
		uint64_t offset, size;
	} bad[] = {
		{ 0, 0 }, { page / 2, page }, { 0, page / 2 }, { 0, page + 1 }, { 4 * page, page },
		{ 3 * page, 2 * page }, { 0, UINT64_MAX - page + 1 },
		{ UINT64_MAX - page + 1, page }, { UINT64_MAX - page + 1, 2 * page },
	};
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 4);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		REFUSED(gmem_file_allocate(file, bad[i].offset, bad[i].size, NULL), -EINVAL);
		REFUSED(gmem_file_punch(file, bad[i].offset, bad[i].size, NULL), -EINVAL);
	}
	OK(gmem_file_allocate(file, page, 3 * page, &done));
	CHECK_EQ(done, 3 * page);
	OK(gmem_file_punch(file, 0, 4 * page, &done));
	CHECK_EQ(done, 4 * page);
	gmem_file_free(file);
	machine_free(&m);
}

static void check_counts(const struct machine *m, uint64_t flags)
{
	uint64_t page = page_size();
	struct gmem_file *file = new_file(m, 64, flags);
	int fd = gmem_file_fd(file);

	CHECK_EQ(allocated_pages(fd), 0);
	OK(gmem_file_allocate(file, 8 * page, 32 * page, NULL));
	CHECK_EQ(allocated_pages(fd), 32);
	OK(gmem_file_allocate(file, 8 * page, 32 * page, NULL));
	CHECK_EQ(allocated_pages(fd), 32);
	OK(gmem_file_punch(file, 0, 10 * page, NULL));
	CHECK_EQ(allocated_pages(fd), 30);
	OK(gmem_file_punch(file, 0, 64 * page, NULL));
	CHECK_EQ(allocated_pages(fd), 0);
	gmem_file_free(file);
}

static void check_all_counts(int type)
{
	struct machine m;

	machine_new(&m, type);
	require_guest_memfd(&m);
	require_cachestat();
	for (uint64_t flags = 0; flags < FLAG_SETS; flags++) {
		if (is_legal(&m, flags))
			check_counts(&m, flags);
	}
	machine_free(&m);
}

TEST(every_allocated_page_is_counted)
{
	check_all_counts(DEFAULT_VM);
}

TEST(every_allocated_page_is_counted_with_private_memory)
{
	check_all_counts(PRIVATE_VM);
}

static volatile sig_atomic_t storm_signals;

static void on_storm(int number)
{
	(void)number;
	storm_signals++;
}

static void set_storm(suseconds_t microseconds)
{
	const struct itimerval timer = {
		.it_interval = { 0, microseconds },
		.it_value = { 0, microseconds },
	};
	struct sigaction action = { .sa_handler = on_storm };

	sigaction(SIGALRM, &action, NULL);
	WORKS(setitimer(ITIMER_REAL, &timer, NULL));
}

/* The kernel gives up an allocation at a pending signal, half done. */
static void allocate_in_storm(struct gmem_file *file, suseconds_t microseconds)
{
	uint64_t done = 0, size = gmem_file_size(file);

	storm_signals = 0;
	set_storm(microseconds);
	for (int i = 0; i < 200 && storm_signals < 3; i++) {
		OK(gmem_file_allocate(file, 0, size, &done));
		CHECK_EQ(done, size);
		CHECK_EQ(allocated_pages(gmem_file_fd(file)), size / page_size());
		OK(gmem_file_punch(file, 0, size, &done));
		CHECK_EQ(done, size);
		CHECK_EQ(allocated_pages(gmem_file_fd(file)), 0);
	}
	set_storm(0);
}

TEST(a_storm_of_signals_stops_no_allocation)
{
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	require_cachestat();
	file = plain_file(&m, 4096);
	allocate_in_storm(file, 2000);
	note("%d signals", (int)storm_signals);
	CHECK(storm_signals >= 3);
	gmem_file_free(file);
	machine_free(&m);
}

TEST(pages_can_be_allocated_and_punched_after_the_vm_fd_is_closed)
{
	struct gmem_file *file;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	file = plain_file(&m, 4);
	machine_free(&m);
	OK(gmem_file_allocate(file, 0, 4 * page_size(), NULL));
	OK(gmem_file_punch(file, 0, 4 * page_size(), NULL));
	gmem_file_free(file);
}

/* ---- adopting ---- */

TEST(an_fd_that_is_only_a_name_is_not_adopted)
{
	GMEM_OPTS(gmem_adopt_opts, opts, .flags = GMEM_ADOPT_CREATE_FLAGS);
	struct gmem_file *adopted = NULL;
	struct machine m;
	char path[32];
	int fd, name;

	machine_new(&m, DEFAULT_VM);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), 0));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	name = (int)WORKS(open(path, O_PATH | O_CLOEXEC));
	CHECK_RESULT(gmem_file_adopt(GMEM_NO_VM, name, &opts, &adopted), -EBADF);
	CHECK(!adopted);
	close(name);
	close(fd);
	machine_free(&m);
}

TEST(an_fd_of_this_vm_is_adopted_with_its_size_and_flags)
{
	struct gmem_file *adopted;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, 5 * page_size(), SHARED_FLAGS));
	OK(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted));
	CHECK_EQ(gmem_file_size(adopted), 5 * page_size());
	CHECK_EQ(gmem_file_create_flags(adopted), SHARED_FLAGS);
	CHECK(gmem_file_fd(adopted) != fd);
	CHECK_EQ(WORKS(fcntl(gmem_file_fd(adopted), F_GETFD)), FD_CLOEXEC);
	gmem_file_free(adopted);
	WORKS(fcntl(fd, F_GETFD));
	close(fd);
	machine_free(&m);
}

TEST(an_fd_that_maps_without_host_access_is_told_apart)
{
	struct gmem_file *adopted;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), GMEM_CREATE_MMAP));
	OK(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted));
	CHECK_EQ(gmem_file_create_flags(adopted), GMEM_CREATE_MMAP);
	gmem_file_free(adopted);
	close(fd);
	machine_free(&m);
}

TEST(adopting_leaves_no_memslot_behind)
{
	struct gmem_file *adopted;
	struct machine m;
	uint64_t page = page_size();
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page, SHARED_FLAGS));
	for (int i = 0; i < 3; i++) {
		OK(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted));
		gmem_file_free(adopted);
	}
	/* Its only page would be bound already. */
	CHECK_RESULT(raw_gmem_slot(m.vm_fd, 0, 0, GIB, page, NULL, fd, 0), 0);
	close(fd);
	machine_free(&m);
}

TEST(known_create_flags_are_believed)
{
	GMEM_OPTS(gmem_adopt_opts, opts, .flags = GMEM_ADOPT_CREATE_FLAGS,
		  .create_flags = SHARED_FLAGS);
	struct gmem_file *adopted;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	require_cachestat();
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), SHARED_FLAGS));
	OK(gmem_file_adopt(m.vm_fd, fd, &opts, &adopted));
	CHECK_EQ(gmem_file_create_flags(adopted), SHARED_FLAGS);
	/* nothing had to be tried */
	CHECK_EQ(allocated_pages(fd), 0);
	gmem_file_free(adopted);
	opts.flags = 1 << 2;
	REFUSED(gmem_file_adopt(m.vm_fd, fd, &opts, &adopted), -EINVAL);
	close(fd);
	machine_free(&m);
}

TEST(an_fd_is_adopted_without_any_vm)
{
	struct gmem_file *adopted;
	struct machine m;
	uint32_t *hva;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), SHARED_FLAGS));
	OK(gmem_file_adopt(GMEM_NO_VM, fd, NULL, &adopted));
	close(fd);
	machine_free(&m);
	hva = map_file(adopted);
	host_store(hva, 5);
	CHECK_EQ(host_load(hva), 5);
	gmem_file_free(adopted);
}

TEST(an_fd_of_another_vm_is_not_adopted)
{
	struct gmem_file *adopted = NULL;
	struct machine m, other;
	int fd;

	machine_new(&m, DEFAULT_VM);
	machine_new(&other, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(other.vm_fd, page_size(), SHARED_FLAGS));
	REFUSED(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted), -EXDEV);
	CHECK(!adopted);
	close(fd);
	machine_free(&other);
	machine_free(&m);
}

TEST(only_a_guest_memfd_is_adopted)
{
	struct gmem_file *adopted = NULL;
	int pipes[2], memfd, regular, null;
	struct machine m;

	machine_new(&m, DEFAULT_VM);
	WORKS(pipe(pipes));
	memfd = (int)WORKS(memfd_create("[kvm-gmem]", MFD_CLOEXEC));
	WORKS(ftruncate(memfd, (off_t)page_size()));
	regular = (int)WORKS(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	null = (int)WORKS(open("/dev/null", O_RDWR | O_CLOEXEC));
	REFUSED(gmem_file_adopt(m.vm_fd, -1, NULL, &adopted), -EBADF);
	REFUSED(gmem_file_adopt(m.vm_fd, 1000000, NULL, &adopted), -EBADF);
	REFUSED(gmem_file_adopt(m.vm_fd, pipes[0], NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(m.vm_fd, memfd, NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(m.vm_fd, regular, NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(m.vm_fd, null, NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(m.vm_fd, m.vm_fd, NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(m.vm_fd, m.kvm_fd, NULL, &adopted), -EINVAL);
	REFUSED(gmem_file_adopt(GMEM_NO_VM, memfd, NULL, &adopted), -EINVAL);
	CHECK(!adopted);
	close(null);
	close(regular);
	close(memfd);
	close(pipes[0]);
	close(pipes[1]);
	machine_free(&m);
}

TEST(a_wholly_bound_file_is_recognised_where_the_kernel_tells)
{
	struct gmem_file *adopted = NULL;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), SHARED_FLAGS));
	WORKS(raw_gmem_slot(m.vm_fd, 0, 0, GIB, page_size(), NULL, fd, 0));
	if (expect()->file_overlap == -EEXIST)
		OK(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted));
	else
		REFUSED(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted), -EXDEV);
	gmem_file_free(adopted);
	close(fd);
	machine_free(&m);
}

/* KVM refuses the trial of such a file on most kernels. */
TEST(a_file_the_library_knows_needs_no_trial)
{
	GMEM_OPTS(gmem_adopt_opts, believed, .flags = GMEM_ADOPT_OF_VM);
	struct gmem_file *first, *second;
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), SHARED_FLAGS));
	OK(gmem_file_adopt(m.vm_fd, fd, NULL, &first));
	WORKS(raw_gmem_slot(m.vm_fd, 0, 0, GIB, page_size(), NULL, fd, 0));
	if (syscall(__NR_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, fd, fd) == 0 ||
	    fcntl(fd, 1027 /* F_DUPFD_QUERY */, fd) == 1) {
		OK(gmem_file_adopt(m.vm_fd, fd, NULL, &second));
		CHECK_EQ(gmem_file_create_flags(second), SHARED_FLAGS);
		gmem_file_free(second);
	}
	gmem_file_free(first);
	OK(gmem_file_adopt(m.vm_fd, fd, &believed, &second));
	CHECK_EQ(gmem_file_create_flags(second), SHARED_FLAGS);
	gmem_file_free(second);
	close(fd);
	machine_free(&m);
}

TEST(a_guest_memfd_is_told_from_other_files)
{
	int fds[2], memfd = memfd_create("[kvm-gmem]", MFD_CLOEXEC);
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, page_size(), SHARED_FLAGS));
	WORKS(pipe(fds));
	CHECK_EQ(gmem_fd_is_guest_memfd(fd), 1);
	CHECK_EQ(gmem_fd_is_guest_memfd(memfd), 0);
	CHECK_EQ(gmem_fd_is_guest_memfd(m.vm_fd), 0);
	CHECK_EQ(gmem_fd_is_guest_memfd(fds[0]), 0);
	close(fd);
	REFUSED(gmem_fd_is_guest_memfd(fd), -EBADF);
	close(memfd);
	close(fds[0]);
	close(fds[1]);
	machine_free(&m);
}

TEST(memory_of_a_file_is_copied_where_no_region_is)
{
	struct gmem_file *file;
	uint64_t page = page_size(), done;
	struct machine m;
	char bytes[8] = "";
	void *hva;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, GMEM_CREATE_MMAP);
	OK(gmem_file_new_raw(m.vm_fd, 2 * page, GMEM_CREATE_MMAP, &file));
	OK(gmem_file_map(file, 0, 2 * page, NULL, &hva));
	/* Every page of it is private. */
	REFUSED(gmem_hva_read(hva, bytes, 8, &done), -EFAULT);
	CHECK_EQ(done, 0);
	REFUSED(gmem_hva_write(hva, bytes, 8, NULL), -EFAULT);
	OK(gmem_recovery_enable());
	REFUSED(gmem_hva_read(hva, bytes, 8, &done), -EFAULT);
	REFUSED(gmem_hva_write(hva, bytes, 8, NULL), -EFAULT);
	gmem_recovery_disable();
	gmem_file_free(file);
	machine_free(&m);
}

TEST(a_partly_bound_file_is_recognised)
{
	struct gmem_file *adopted;
	uint64_t page = page_size();
	struct machine m;
	int fd;

	machine_new(&m, DEFAULT_VM);
	require_create_flags(&m, SHARED_FLAGS);
	fd = (int)WORKS(raw_create(m.vm_fd, 8 * page, SHARED_FLAGS));
	WORKS(raw_gmem_slot(m.vm_fd, 0, 0, GIB, 7 * page, NULL, fd, 0));
	OK(gmem_file_adopt(m.vm_fd, fd, NULL, &adopted));
	gmem_file_free(adopted);
	close(fd);
	machine_free(&m);
}

TEST(a_file_lives_as_long_as_somebody_holds_it)
{
	struct gmem_file *file, *adopted;
	struct machine m;
	uint32_t *hva;
	int copy;

	machine_new(&m, DEFAULT_VM);
	file = shared_file(&m, 1);
	host_store(map_file(file), 0x1234);
	copy = (int)WORKS(fcntl(gmem_file_fd(file), F_DUPFD_CLOEXEC, 0));
	gmem_file_free(file);

	OK(gmem_file_adopt(m.vm_fd, copy, NULL, &adopted));
	close(copy);
	hva = map_file(adopted);
	CHECK_EQ(host_load(hva), 0x1234);
	gmem_file_free(adopted);
	machine_free(&m);
}

TEST(null_is_no_file)
{
	gmem_file_free(NULL);
	CHECK_EQ(gmem_file_size(NULL), 0);
	CHECK_EQ(gmem_file_create_flags(NULL), 0);
	CHECK_EQ(gmem_file_fd(NULL), -EINVAL);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--is-open"))
		return fcntl(atoi(argv[2]), F_GETFD) >= 0;
	return run_tests(argc, argv);
}
