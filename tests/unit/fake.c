/* SPDX-License-Identifier: MIT */
/* The machine: its state, its failures, fds, and the calls that are not KVM's */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fake_internal.h"

struct fake_kernel fake;
struct fake_state kernel;

static struct {
	unsigned countdown;	/* to the call that fails; 0: none */
	int err;
	bool by_kind;
	enum fake_call kind;
	unsigned skip;
	unsigned count;
	int kind_err;
	bool at_random;
	unsigned one_in;
	uint64_t random;
	bool struck;
	enum fake_call victim;
} failure;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local unsigned depth;

void enter(void)
{
	pthread_mutex_lock(&lock);
	depth++;
}

int leave(int ret)
{
	depth--;
	pthread_mutex_unlock(&lock);
	return ret;
}

bool fake_is_running(void)
{
	return depth > 0;
}

void complain(const char *what, int number)
{
	fprintf(stderr, "fake: %s %d\n", what, number);
	kernel.complaints++;
}

void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ------------------------------------------------------- sorted intervals -- */

/* index of the first that ends after @start */
size_t span_at(const struct spans *s, uint64_t start)
{
	size_t low = 0, high = s->count, mid;

	while (low < high) {
		mid = low + (high - low) / 2;
		if (s->v[mid].end <= start)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool span_overlaps(const struct spans *s, uint64_t start, uint64_t end,
			  uint32_t except)
{
	size_t i;

	for (i = span_at(s, start); i < s->count && s->v[i].start < end; i++)
		if (s->v[i].number != except)
			return true;
	return false;
}

void span_add(struct spans *s, uint64_t start, uint64_t end, uint32_t number)
{
	size_t i = span_at(s, start);

	if (s->count == s->room) {
		s->room = s->room ? 2 * s->room : 16;
		s->v = must(realloc(s->v, s->room * sizeof(*s->v)));
	}
	memmove(s->v + i + 1, s->v + i, (s->count - i) * sizeof(*s->v));
	s->v[i] = (struct span){ start, end, number };
	s->count++;
}

void span_remove(struct spans *s, uint64_t start, uint32_t number)
{
	size_t i = span_at(s, start);

	if (i == s->count || s->v[i].number != number)
		abort();
	s->count--;
	memmove(s->v + i, s->v + i + 1, (s->count - i) * sizeof(*s->v));
}

void span_set(struct spans *s, uint64_t start, uint64_t end, bool in)
{
	uint64_t from = in && start ? start - 1 : start;
	struct span old;
	size_t i;

	while ((i = span_at(s, from)) < s->count && s->v[i].start < end + in) {
		old = s->v[i];
		span_remove(s, old.start, old.number);
		if (in) {
			start = old.start < start ? old.start : start;
			end = old.end > end ? old.end : end;
			continue;
		}
		if (old.end > end)
			span_add(s, end, old.end, 0);
		if (old.start < start)
			span_add(s, old.start, start, 0);
	}
	if (in)
		span_add(s, start, end, 0);
}

bool span_has(const struct spans *s, uint64_t at)
{
	size_t i = span_at(s, at);

	return i < s->count && s->v[i].start <= at;
}

/* --------------------------------------------------------------- failures -- */

void fake_fail_call(unsigned n, int err)
{
	enter();
	memset(&failure, 0, sizeof(failure));
	failure.countdown = n;
	failure.err = err;
	leave(0);
}

void fake_fail_kind(enum fake_call call, unsigned skip, unsigned count, int err)
{
	enter();
	memset(&failure, 0, sizeof(failure));
	failure.by_kind = true;
	failure.kind = call;
	failure.skip = skip;
	failure.count = count;
	failure.kind_err = err;
	leave(0);
}

void fake_fail_at_random(unsigned skip, unsigned one_in, uint64_t seed)
{
	enter();
	memset(&failure, 0, sizeof(failure));
	failure.at_random = true;
	failure.skip = skip;
	failure.one_in = one_in;
	failure.random = seed | 1;
	leave(0);
}

void fake_fail_next(enum fake_call call, int err)
{
	fake_fail_kind(call, 0, 1, err);
}

bool fake_fail_struck(void)
{
	bool struck;
	enum fake_call victim;

	enter();
	struck = failure.struck;
	victim = failure.victim;
	memset(&failure, 0, sizeof(failure));
	failure.victim = victim;
	leave(0);
	return struck;
}

enum fake_call fake_fail_victim(void)
{
	enter();
	return (enum fake_call)leave((int)failure.victim);
}

void fake_interrupt(unsigned times, uint64_t pages)
{
	enter();
	kernel.interrupt_times = times;
	kernel.interrupt_pages = pages;
	leave(0);
}

void fake_limit_prefault(uint64_t pages, unsigned times)
{
	enter();
	kernel.prefault_most = pages;
	kernel.prefault_interruptions = times;
	leave(0);
}

static int strike(enum fake_call call, int err)
{
	failure.struck = true;
	failure.victim = call;
	return err;
}

static uint64_t next_random(void)
{
	failure.random ^= failure.random << 13;
	failure.random ^= failure.random >> 7;
	failure.random ^= failure.random << 17;
	return failure.random >> 11;
}

/*
 * The first call after those to skip, then some. Not readers' barriers; nor unmapping part of
 * a mapping, after which a mapping is left over.
 */
static int random_fate(enum fake_call call)
{
	static const int errnos[] = { -ENOMEM, -EINVAL, -EIO, -EEXIST };

	if (call == FAKE_MEMBARRIER || call == FAKE_MUNMAP)
		return 0;
	if (failure.skip) {
		failure.skip--;
		return 0;
	}
	if (failure.struck && next_random() % failure.one_in)
		return 0;
	return strike(call, errnos[next_random() % 4]);
}

int fate(enum fake_call call)
{
	if (failure.at_random)
		return random_fate(call);
	if (failure.countdown && --failure.countdown == 0)
		return strike(call, failure.err);

	if (!failure.by_kind || failure.kind != call || failure.count == 0)
		return 0;
	if (failure.skip) {
		failure.skip--;
		return 0;
	}
	failure.count--;
	return strike(call, failure.kind_err);
}

/* Every call that can fail passes here: it is counted, and may have to */
int attempt(enum fake_call call)
{
	kernel.counts[call]++;
	return fate(call);
}

static const char *const call_names[FAKE_CALLS] = {
	[FAKE_OPEN] = "open",
	[FAKE_DUP] = "dup",
	[FAKE_SET_CLOEXEC] = "set close-on-exec",
	[FAKE_MMAP] = "mmap",
	[FAKE_MUNMAP] = "munmap",
	[FAKE_MPROTECT] = "mprotect",
	[FAKE_MADVISE] = "madvise",
	[FAKE_FALLOCATE] = "fallocate",
	[FAKE_MEMFD] = "memfd_create",
	[FAKE_RESIZE] = "ftruncate",
	[FAKE_SEAL] = "F_ADD_SEALS",
	[FAKE_MINCORE] = "mincore",
	[FAKE_CACHESTAT] = "cachestat",
	[FAKE_PAGEMAP] = "read the pagemap",
	[FAKE_FIND_ABSENT] = "find a page that is not mapped",
	[FAKE_FIND_MAPPED] = "find the pages that are mapped",
	[FAKE_MAPPING_AT] = "ask for a mapping",
	[FAKE_OPEN_MAPPED] = "open a mapping's file",
	[FAKE_TRY_READ] = "read through /proc/self/mem",
	[FAKE_WRITE] = "write",
	[FAKE_MBIND] = "mbind",
	[FAKE_GET_MEMPOLICY] = "get_mempolicy",
	[FAKE_GET_AFFINITY] = "sched_getaffinity",
	[FAKE_SET_AFFINITY] = "sched_setaffinity",
	[FAKE_QUERY_PAGES] = "move_pages",
	[FAKE_FD_KIND] = "fstat and F_GETFL",
	[FAKE_REOPEN] = "open again",
	[FAKE_READ_AT] = "read at an offset",
	[FAKE_READ_CACHED] = "read what is cached",
	[FAKE_WRITE_AT] = "write at an offset",
	[FAKE_FIND_DATA] = "lseek to data",
	[FAKE_DATASYNC] = "fdatasync",
	[FAKE_POLL] = "poll",
	[FAKE_RING_NEW] = "set up a ring",
	[FAKE_RING_SUBMIT] = "submit to a ring",
	[FAKE_RING_RESULT] = "a request on a ring",
	[FAKE_RING_CANCEL] = "cancel a request",
	[FAKE_FILE_SIZE] = "fstat",
	[FAKE_FILESYSTEM_TYPE] = "fstatfs",
	[FAKE_FACTS] = "fstat and others",
	[FAKE_ACCEPT] = "accept4",
	[FAKE_SEND] = "sendmsg",
	[FAKE_RECEIVE] = "recvmsg",
	[FAKE_RECEIVE_FD] = "a file received",
	[FAKE_EVENT] = "eventfd",
	[FAKE_TIMER] = "timerfd_create",
	[FAKE_EPOLL] = "epoll",
	[FAKE_POLL_MANY] = "poll of many",
	[FAKE_FD_LINK] = "readlink",
	[FAKE_READ_FILE] = "read a file",
	[FAKE_IO_URING] = "io_uring_setup",
	[FAKE_MEMBARRIER] = "membarrier",
	[FAKE_CHECK_EXTENSION] = "KVM_CHECK_EXTENSION",
	[FAKE_CREATE_VM] = "KVM_CREATE_VM",
	[FAKE_CREATE_GMEMFD] = "KVM_CREATE_GUEST_MEMFD",
	[FAKE_SET_SLOT] = "KVM_SET_USER_MEMORY_REGION",
	[FAKE_SET_SLOT2] = "KVM_SET_USER_MEMORY_REGION2",
	[FAKE_DELETE_SLOT] = "deleting a memslot",
	[FAKE_RUN] = "KVM_RUN",
	[FAKE_SET_ATTRIBUTES] = "KVM_SET_MEMORY_ATTRIBUTES",
	[FAKE_PRE_FAULT] = "KVM_PRE_FAULT_MEMORY",
	[FAKE_OTHER_IOCTL] = "another ioctl",
};

const char *fake_call_name(enum fake_call call)
{
	return call_names[call];
}

unsigned fake_count(enum fake_call call)
{
	enter();
	return (unsigned)leave((int)kernel.counts[call]);
}

unsigned fake_count_all(void)
{
	unsigned sum = 0;
	size_t i;

	enter();
	for (i = 0; i < FAKE_CALLS; i++)
		sum += kernel.counts[i];
	return (unsigned)leave((int)sum);
}

unsigned fake_complaints(void)
{
	enter();
	return (unsigned)leave((int)kernel.complaints);
}

/* ------------------------------------------------- VMs, files and their fds -- */

struct handle *handle_of(int fd)
{
	return fd >= 0 && fd < MAX_FDS ? &kernel.fds[fd] : NULL;
}

struct handle *open_handle(int fd, enum kind kind, struct vm *vm,
				  struct file *file)
{
	struct handle *h = must(handle_of(fd));

	if (h->kind != CLOSED)
		complain("something else closed fd", fd);
	*h = (struct handle){ .kind = kind, .vm = vm, .file = file };
	if (vm)
		vm->fds++;
	if (file)
		file->refs++;
	return h;
}

struct vm *vm_of(int fd)
{
	struct handle *h = handle_of(fd);
	struct vm *vm;

	if (h && h->kind == VM)
		return h->vm;
	/* newest first: an fd number may have been used before */
	for (vm = kernel.vms; vm; vm = vm->next)
		if (vm->first_fd == fd)
			return vm;
	return NULL;
}

static void vm_put(struct vm *vm)
{
	struct vm **p;

	if (vm->fds || vm->files)
		return;
	for (p = &kernel.vms; *p != vm;)
		p = &(*p)->next;
	*p = vm->next;
	free(vm->by_gpa.v);
	free(vm->privates.v);
	free(vm->slots);
	free(vm);
}

void file_put(struct file *file)
{
	struct vm *vm = file->vm;
	struct file **p;
	size_t i;

	if (--file->refs)
		return;
	if (file->bound.count && vm->fds && !vm->dead && !vm->is_librarys)
		complain("lost the contents of memslot", (int)file->bound.v[0].number);
	for (i = 0; i < file->bound.count; i++)
		vm->slots[file->bound.v[i].number].file = -1;

	for (p = &kernel.files; *p != file;)
		p = &(*p)->next;
	*p = file->next;
	free(file->bound.v);
	free(file->privates.v);
	free(file);
	vm->files--;
	vm_put(vm);
}

bool is_open(int fd)
{
	return fd >= 0 && fcntl(fd, F_GETFD) >= 0;
}

static void close_handle(int fd)
{
	struct handle *h = handle_of(fd);
	struct handle old;

	if (!h || h->kind == CLOSED) {
		complain("close of a foreign fd", fd);
		return;
	}
	old = *h;
	memset(h, 0, sizeof(*h));
	close(fd);
	if (old.vcpu) {
		munmap(old.vcpu->run, 2 * fake.page_size);
		if (old.vcpu->ring)
			munmap(old.vcpu->ring, fake.page_size);
		free(old.vcpu);
	}
	if (old.file)
		file_put(old.file);
	if (old.vm) {
		old.vm->fds--;
		vm_put(old.vm);
	}
}

void gmem_sys_close(int fd)
{
	enter();
	close_handle(fd);
	leave(0);
}

bool is_aligned(uint64_t value)
{
	return value % fake.page_size == 0;
}

/* ------------------------------------------------------ the smaller calls -- */

uint64_t gmem_sys_page_size(void)
{
	return fake.page_size;
}

const char *gmem_sys_architecture(void)
{
	return fake.arm64 ? "arm64" : "x86_64";
}

static int do_open(const char *path)
{
	int fd;

	if (strncmp(path, "/proc/self/", 11) == 0)
		return open_mappings(path);
	if (strcmp(path, "/dev/kvm") != 0)
		return -ENOENT;
	if (fake.kvm_errno)
		return fake.kvm_errno;
	fd = eventfd(0, EFD_CLOEXEC);
	open_handle(fd, KVM, NULL, NULL)->cloexec = true;
	return fd;
}

int gmem_sys_open(const char *path, int flags)
{
	int ret;

	(void)flags;
	enter();
	ret = attempt(FAKE_OPEN);
	if (!ret)
		ret = do_open(path);
	return leave(ret);
}

static int do_dup(int fd)
{
	struct handle *h = handle_of(fd);
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (copy < 0)
		return -errno;
	if (!h || h->kind == CLOSED)
		open_handle(copy, OTHER, NULL, NULL)->cloexec = true;
	else
		open_handle(copy, h->kind, h->vm, h->file)->cloexec = true;
	return copy;
}

int gmem_sys_dup(int fd)
{
	int ret;

	enter();
	ret = attempt(FAKE_DUP);
	if (!ret)
		ret = do_dup(fd);
	return leave(ret);
}

/* As for a VM fd: what one open file is of it, another cannot be. */
static int do_same_file(int a, int b)
{
	struct handle *x = handle_of(a), *y = handle_of(b);

	if (!is_open(a) || !is_open(b))
		return -EBADF;
	if (fake.no_same_file)
		return -ENOSYS;
	return x && y && x->kind == y->kind && x->vm == y->vm && x->file == y->file;
}

int gmem_sys_same_file(int a, int b)
{
	int ret;

	enter();
	ret = do_same_file(a, b);
	return leave(ret);
}

int gmem_sys_set_cloexec(int fd)
{
	struct handle *h;
	int err;

	enter();
	h = handle_of(fd);
	err = attempt(FAKE_SET_CLOEXEC);
	if (!err && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		err = -errno;
	if (!err && h)
		h->cloexec = true;
	return leave(err);
}

static int do_file_size(int fd, uint64_t *ret)
{
	struct handle *h = handle_of(fd);
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	*ret = h && h->kind == GMEM ? h->file->size : (uint64_t)st.st_size;
	return 0;
}

void fake_shorten_writes(size_t most)
{
	enter();
	kernel.max_written = most;
	leave(0);
}

static int64_t do_write(int fd, const void *buf, size_t size)
{
	ssize_t n;

	if (kernel.max_written && size > kernel.max_written)
		size = kernel.max_written;
	n = write(fd, buf, size);
	return n < 0 ? -errno : n;
}

int64_t gmem_sys_write(int fd, const void *buf, size_t size)
{
	int64_t n;

	enter();
	n = attempt(FAKE_WRITE);
	leave(0);
	/* A write may wait; others must not wait for it. */
	return n ? n : do_write(fd, buf, size);
}

int gmem_sys_file_size(int fd, uint64_t *ret)
{
	int err;

	enter();
	err = attempt(FAKE_FILE_SIZE);
	if (!err)
		err = do_file_size(fd, ret);
	return leave(err);
}

static int do_filesystem_type(int fd, uint64_t *ret)
{
	struct handle *h = handle_of(fd);
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return -errno;
	if (h && h->kind == GMEM)
		*ret = fake.filesystem_type;
	else if (h && h->kind != CLOSED && h->kind != OTHER)
		*ret = FAKE_ANON_INODE_MAGIC;
	else
		*ret = (uint64_t)fs.f_type;
	return 0;
}

int gmem_sys_filesystem_type(int fd, uint64_t *ret)
{
	int err;

	enter();
	err = attempt(FAKE_FILESYSTEM_TYPE);
	if (!err)
		err = do_filesystem_type(fd, ret);
	return leave(err);
}

static int do_fd_link(int fd, char *buf, size_t size)
{
	static const char *const links[] = {
		[KVM] = "/dev/kvm",
		[VM] = "anon_inode:kvm-vm",
		[VCPU] = "anon_inode:kvm-vcpu:0",
	};
	struct handle *h = handle_of(fd);
	char path[32];
	ssize_t n;

	if (fake.no_proc || !is_open(fd))
		return -ENOENT;
	if (h && h->kind == GMEM)
		snprintf(buf, size, "%s", fake.link);
	else if (h && h->kind > OTHER)
		snprintf(buf, size, "%s", links[h->kind]);
	else {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, buf, size - 1);
		if (n < 0)
			return -errno;
		buf[n] = '\0';
	}
	return (int)strlen(buf);
}

int gmem_sys_fd_link(int fd, char *buf, size_t size)
{
	int ret;

	enter();
	ret = attempt(FAKE_FD_LINK);
	if (!ret)
		ret = do_fd_link(fd, buf, size);
	return leave(ret);
}

static struct {
	const char *path;
	const char *contents;
} files[32];

void fake_set_file(const char *path, const char *contents)
{
	enter();
	size_t i = 0;

	while (files[i].path && strcmp(files[i].path, path) != 0)
		if (++i == sizeof(files) / sizeof(files[0]))
			abort();
	files[i].path = path;
	files[i].contents = contents;
	leave(0);
}

static int do_read_file(const char *path, char *buf, size_t size)
{
	size_t i;

	for (i = 0; i < sizeof(files) / sizeof(files[0]) && files[i].path; i++) {
		if (strcmp(files[i].path, path) == 0 && files[i].contents) {
			snprintf(buf, size, "%s", files[i].contents);
			return (int)strlen(buf);
		}
	}
	if (!fake.nodes || !strstr(path, "/node/"))
		return -ENOENT;
	if (fake.nodes == 1)
		snprintf(buf, size, "0\n");
	else
		snprintf(buf, size, "0-%u\n", fake.nodes - 1);
	return (int)strlen(buf);
}

int gmem_sys_read_file(const char *path, char *buf, size_t size)
{
	int ret;

	enter();
	ret = attempt(FAKE_READ_FILE);
	if (!ret)
		ret = do_read_file(path, buf, size);
	return leave(ret);
}

int64_t gmem_sys_count_lines(const char *path)
{
	int64_t lines = 0;
	char text[4096];
	int ret;

	enter();
	ret = attempt(FAKE_READ_FILE);
	if (!ret)
		ret = do_read_file(path, text, sizeof(text));
	for (int i = 0; i < ret; i++)
		lines += text[i] == '\n';
	return leave(ret < 0 ? ret : (int)lines);
}

int gmem_sys_ask_io_uring(void)
{
	int err;

	enter();
	err = attempt(FAKE_IO_URING);
	return leave(err ? err : fake.io_uring);
}

/* ------------------------------------- the machine's own: threads, signals -- */

static int membarrier_refusal;
static int copy_refusal;
static uint64_t copies;
void (*fake_before_copy)(void);

void fake_refuse_membarrier(int err)
{
	enter();
	membarrier_refusal = err;
	leave(0);
}

void fake_refuse_copies(int err)
{
	__atomic_store_n(&copy_refusal, err, __ATOMIC_RELAXED);
}

uint64_t fake_copies(void)
{
	return __atomic_load_n(&copies, __ATOMIC_RELAXED);
}

/* The real one: readers of other threads rely on it. */
static int do_membarrier(int command)
{
	long ret;

	if (membarrier_refusal)
		return membarrier_refusal;
	ret = syscall(__NR_membarrier, command, 0, 0);
	return ret < 0 ? -errno : (int)ret;
}

int gmem_sys_membarrier(int command)
{
	int ret;

	enter();
	ret = attempt(FAKE_MEMBARRIER);
	if (!ret)
		ret = do_membarrier(command);
	return leave(ret);
}

void gmem_sys_pause(unsigned int microseconds)
{
	const struct timespec time = { .tv_nsec = (long)microseconds * 1000 };

	if (microseconds)
		nanosleep(&time, NULL);
	else
		sched_yield();
}

static uint64_t clock_extra;

uint64_t gmem_sys_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec +
	       __atomic_add_fetch(&clock_extra, fake.clock_step, __ATOMIC_RELAXED);
}

int gmem_sys_sigaction(int signal, const struct sigaction *action, struct sigaction *ret_old)
{
	return sigaction(signal, action, ret_old) < 0 ? -errno : 0;
}

int gmem_sys_sigmask(int how, const sigset_t *set, sigset_t *ret_old)
{
	return -pthread_sigmask(how, set, ret_old);
}

pid_t gmem_sys_pid(void)
{
	return getpid();
}

int gmem_sys_requeue_signal(int signal, siginfo_t *info)
{
	long tid = syscall(__NR_gettid);

	return syscall(__NR_rt_tgsigqueueinfo, getpid(), tid, signal, info) < 0 ? -errno : 0;
}

int gmem_sys_raise(int signal)
{
	return raise(signal) == 0 ? 0 : -errno;
}

int64_t gmem_sys_process_vm_readv(void *dst, const void *src, size_t size)
{
	struct iovec local = { .iov_base = dst, .iov_len = size };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)src, .iov_len = size };
	int err = __atomic_load_n(&copy_refusal, __ATOMIC_RELAXED);
	ssize_t n;

	__atomic_fetch_add(&copies, 1, __ATOMIC_RELAXED);
	if (fake_before_copy)
		fake_before_copy();
	if (err)
		return err;
	n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	return n < 0 ? -errno : n;
}

int gmem_sys_write_nothing(void *p)
{
	const int operation = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0x800);
	int err = __atomic_load_n(&copy_refusal, __ATOMIC_RELAXED);
	uint32_t nobody = 0;

	if (err)
		return err;
	return syscall(__NR_futex, &nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, NULL, p,
		       operation) < 0 ? -errno : 0;
}

/* ------------------------------------------------------------ the machine -- */

void fake_set_page_size(uint64_t page_size)
{
	uint64_t real = (uint64_t)sysconf(_SC_PAGESIZE);

	fake.page_size = page_size > real ? page_size : real;
}

void fake_boot_kernel(const struct fake_kernel *row)
{
	fake_halt();
	fake = *row;
	fake_set_page_size(row->page_size);
	memset(kernel.counts, 0, sizeof(kernel.counts));
	memset(&failure, 0, sizeof(failure));
	kernel.complaints = 0;
	kernel.interrupt_times = 0;
	kernel.huge_page_size = 0;
	kernel.node = 0;
	kernel.races = false;
	kernel.unmapped_end = 0;
	fake_after_look = NULL;
	fake_limit_prefault(0, 0);
	kernel.io_most = 0;
	kernel.files_are_cached = false;
	kernel.ring_entries = 0;
	kernel.orphan_count = 0;
	memset(kernel.limits, 0xff, sizeof(kernel.limits));
	kernel.last_random = 0;
	kernel.direct = FAKE_DIRECT_NEVER;
	membarrier_refusal = 0;
	memset(files, 0, sizeof(files));
	forget_marks();
	fake_refuse_copies(0);
}

void fake_boot(const char *name)
{
	size_t i;

	for (i = 0; i < fake_kernel_count; i++) {
		if (strcmp(fake_kernels[i].name, name) == 0) {
			fake_boot_kernel(&fake_kernels[i]);
			return;
		}
	}
	fprintf(stderr, "fake: no kernel \"%s\"\n", name);
	abort();
}

unsigned fake_halt(void)
{
	unsigned left = fake_open_fds() + fake_open_mappings();
	struct mapping map;
	int fd;

	enter();
	for (fd = 0; fd < MAX_FDS; fd++)
		if (kernel.fds[fd].kind == VM)
			close_handle(fd);
	while (kernel.map_count) {
		map = kernel.maps[0];
		map_delete(0);
		munmap((void *)(uintptr_t)map.start, map.size);
	}
	for (fd = 0; fd < MAX_FDS; fd++)
		if (kernel.fds[fd].kind != CLOSED)
			close_handle(fd);
	free(kernel.maps);
	kernel.maps = NULL;
	kernel.map_room = 0;
	leave(0);
	return left;
}

int fake_new_vm(void)
{
	int fd;

	enter();
	fd = create_vm(fake.vm_type);
	return leave(fd);
}

int fake_new_kvm(void)
{
	int fd;

	enter();
	fd = do_open("/dev/kvm");
	return leave(fd);
}

int fake_new_vcpu(int vm_fd)
{
	int fd;

	enter();
	fd = create_vcpu(must(vm_of(vm_fd)));
	return leave(fd);
}

int fake_new_gmemfd(int vm_fd, uint64_t size, uint64_t flags)
{
	struct gmem_kvm_create_guest_memfd args = { .size = size, .flags = flags };
	int fd;

	enter();
	fd = create_gmemfd(must(vm_of(vm_fd)), &args);
	return leave(fd);
}

void fake_close(int fd)
{
	gmem_sys_close(fd);
}

void fake_kill_vm(int vm_fd)
{
	enter();
	((struct vm *)must(vm_of(vm_fd)))->dead = true;
	leave(0);
}
