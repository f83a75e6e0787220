/* SPDX-License-Identifier: MIT */
/* Transfers on rings of the caller's, real ones: small, shared, polled by the kernel */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

#define BASE (256 * MIB)
#define SIZE (8 * MIB)
#define FOREIGN 99	/* user_data of the test's own requests */

struct bench {
	struct lab lab;
	char *hva;
	int fd;
};

static void fill(struct bench *g, unsigned seed)
{
	for (uint64_t at = 0; at < SIZE; at += 8)
		*(uint64_t *)(void *)(g->hva + at) = (at + seed) * 0x9e3779b97f4a7c15;
}

static void check_guest(const struct bench *g, unsigned seed)
{
	for (uint64_t at = 0; at < SIZE; at += 8)
		CHECK(*(uint64_t *)(void *)(g->hva + at) == (at + seed) * 0x9e3779b97f4a7c15);
}

static void begin(struct bench *g)
{
	lab_new(&g->lab, DEFAULT_VM);
	g->hva = gmem_region_hva(lab_add(&g->lab, GMEM_BACKING_HOST, BASE, SIZE / page_size(), NULL));
	g->fd = lab_new_file();
	fill(g, 1);
}

static void end(struct bench *g)
{
	close(g->fd);
	lab_free(&g->lab);
}

static const unsigned kinds[] = {
	0, IORING_SETUP_SQPOLL, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
};

static bool open_ring(struct io_uring *ring, unsigned entries, unsigned flags)
{
	int err = io_uring_queue_init(entries, ring, flags);

	if (err && !flags)
		skip("there is no io_uring here: %s", strerror(-err));
	return err == 0;
}

/* Take one completion, if one comes within so many milliseconds */
static bool take(struct io_uring *ring, unsigned milliseconds, uint64_t *ret_tag, int *ret_res)
{
	struct __kernel_timespec timeout = { .tv_sec = milliseconds / 1000,
					     .tv_nsec = milliseconds % 1000 * 1000000 };
	struct io_uring_cqe *cqe;
	int err = milliseconds ? io_uring_wait_cqe_timeout(ring, &cqe, &timeout)
			       : io_uring_peek_cqe(ring, &cqe);

	if (err)
		return false;
	*ret_tag = cqe->user_data;
	*ret_res = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return true;
}

static void free_on_ring(struct io_uring *ring, struct gmem_transfer *transfer)
{
	uint64_t tag;
	int ret, res;

	while ((ret = gmem_transfer_free(transfer)) == -EBUSY) {
		CHECK(take(ring, 5000, &tag, &res));
		OK(gmem_transfer_complete(transfer, tag, res));
	}
	CHECK_RESULT(ret, 0);
	while (take(ring, 2, &tag, &res))
		FAIL("a completion with tag %llu came after the end", (unsigned long long)tag);
}

static void step_until_it_waits(struct gmem_transfer *transfer, unsigned most)
{
	int ret = GMEM_TRANSFER_MORE;

	while (most-- && ret == GMEM_TRANSFER_MORE)
		ret = gmem_transfer_step(transfer, 0);
	CHECK(ret >= 0);
}

TEST(no_completion_comes_after_the_end)
{
	struct bench g;

	begin(&g);
	OK(gmem_vm_save(g.lab.vm, g.fd, NULL, NULL));
	for (unsigned i = 0; i < ARRAY_SIZE(kinds) * 4 * 6; i++) {
		unsigned entries = 1u << (2 * (i % 4)), steps = 4 * (i / 4 % 6);
		GMEM_OPTS(gmem_transfer_opts, opts, .ring_tag = 1000);
		struct gmem_transfer *transfer;
		struct io_uring ring;
		int ends[2];

		in_case("ring of %u entries, flags 0x%x, %u steps", entries, kinds[i / 24], steps);
		if (!open_ring(&ring, entries, kinds[i / 24]))
			continue;
		opts.ring = &ring;

		/* a save, with its sync */
		opts.flags = GMEM_TRANSFER_SYNC;
		OK(gmem_vm_save_begin(g.lab.vm, g.fd, &opts, &transfer));
		step_until_it_waits(transfer, steps);
		free_on_ring(&ring, transfer);

		/* a pipe that is empty, or to which something comes meanwhile */
		opts.flags = 0;
		WORKS(pipe(ends));
		OK(gmem_vm_load_begin(g.lab.vm, BASE, ends[0], 0, MIB, &opts, &transfer));
		CHECK_EQ(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		if (steps % 8)
			WORKS(write(ends[1], "something", 9));
		free_on_ring(&ring, transfer);
		close(ends[0]);
		close(ends[1]);
		io_uring_queue_exit(&ring);
	}
	end(&g);
}

/* What an event loop does that has several transfers and requests of its own */
TEST(a_ring_that_polls_for_completions_is_refused)
{
	struct gmem_transfer *transfer = NULL;
	struct io_uring ring;
	struct bench g;

	if (!open_ring(&ring, 8, IORING_SETUP_IOPOLL))
		skip("no ring can poll here");
	begin(&g);
	GMEM_OPTS(gmem_transfer_opts, opts, .ring = &ring);
	CHECK_RESULT(gmem_vm_save_begin(g.lab.vm, g.fd, &opts, &transfer), -EINVAL);
	CHECK(strstr(gmem_last_error(), "IORING_SETUP_IOPOLL"));
	CHECK_RESULT(gmem_vm_restore_begin(g.lab.vm, g.fd, &opts, &transfer), -EINVAL);
	CHECK(!transfer);
	end(&g);
	io_uring_queue_exit(&ring);
}

TEST(a_pipe_that_never_blocks_is_waited_for)
{
	struct gmem_transfer *transfer;
	struct io_uring ring;
	unsigned completions = 0;
	struct bench g;
	int ends[2], res;
	uint64_t tag;

	CHECK(open_ring(&ring, 8, 0));
	begin(&g);
	GMEM_OPTS(gmem_transfer_opts, opts, .ring = &ring);
	WORKS(pipe2(ends, O_NONBLOCK | O_CLOEXEC));
	OK(gmem_vm_load_begin(g.lab.vm, BASE, ends[0], 0, 5, &opts, &transfer));
	for (unsigned i = 0; i < 5; i++) {
		CHECK_RESULT(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
		if (!take(&ring, 20, &tag, &res))
			continue;
		OK(gmem_transfer_complete(transfer, tag, res));
		completions++;
	}
	/* one says at most that it would have to wait */
	CHECK(completions <= 1);
	CHECK_EQ(write(ends[1], "hello", 5), 5);
	while ((res = gmem_transfer_step(transfer, 0)) > 0)
		if (res == GMEM_TRANSFER_WAIT && take(&ring, 1000, &tag, &res))
			OK(gmem_transfer_complete(transfer, tag, res));
	CHECK_RESULT(res, 0);
	CHECK(memcmp(g.hva, "hello", 5) == 0);
	OK(gmem_transfer_free(transfer));
	close(ends[0]);
	close(ends[1]);
	end(&g);
	io_uring_queue_exit(&ring);
}

TEST(transfers_share_a_small_ring)
{
	for (unsigned i = 0; i < ARRAY_SIZE(kinds) * 4; i++) {
		static const unsigned sizes[] = { 1, 2, 3, 8 };
		GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC);
		struct gmem_transfer *transfers[3];
		unsigned done = 0, foreign = 0;
		int fds[2], result[3] = { 1, 1, 1 };
		struct io_uring_sqe *sqe;
		struct io_uring ring;
		struct bench g;
		uint64_t tag;
		int res;

		in_case("ring of %u entries, flags 0x%x", sizes[i % 4], kinds[i / 4]);
		if (!open_ring(&ring, sizes[i % 4], kinds[i / 4]))
			continue;
		begin(&g);
		opts.ring = &ring;
		for (unsigned k = 0; k < 2; k++) {
			fds[k] = lab_new_file();
			opts.ring_tag = 1000 + GMEM_TRANSFER_TAGS * k;
			OK(gmem_vm_save_begin(g.lab.vm, fds[k], &opts, &transfers[k]));
		}
		OK(gmem_vm_save(g.lab.vm, g.fd, NULL, NULL));
		opts.flags = 0;
		opts.ring_tag += GMEM_TRANSFER_TAGS;
		OK(gmem_vm_restore_begin(g.lab.vm, g.fd, &opts, &transfers[2]));

		while (done < 3) {
			bool is_idle = true;

			/* the ring is as full as it can be */
			for (unsigned k = 0; k < sizes[i % 4] && (sqe = io_uring_get_sqe(&ring)); k++) {
				io_uring_prep_nop(sqe);
				io_uring_sqe_set_data64(sqe, FOREIGN);
				foreign++;
			}
			for (unsigned k = 0; k < 3; k++) {
				if (result[k] <= 0)
					continue;
				result[k] = gmem_transfer_step(transfers[k], 0);
				CHECK(result[k] >= 0);
				done += result[k] == 0;
				is_idle &= result[k] != GMEM_TRANSFER_MORE;
			}
			while (take(&ring, is_idle && done < 3 ? 5000 : 0, &tag, &res)) {
				is_idle = false;
				foreign -= tag == FOREIGN;
				if (tag != FOREIGN)
					OK(gmem_transfer_complete(transfers[(tag - 1000) / GMEM_TRANSFER_TAGS],
								  tag, res));
			}
		}
		for (unsigned k = 0; k < 3; k++)
			OK(gmem_transfer_free(transfers[k]));
		io_uring_submit(&ring);
		while (foreign && take(&ring, 5000, &tag, &res))
			foreign -= tag == FOREIGN;
		CHECK_EQ(foreign, 0);
		check_guest(&g, 1);
		OK(gmem_image_verify(fds[0], NULL, NULL));
		OK(gmem_image_verify(fds[1], NULL, NULL));
		io_uring_queue_exit(&ring);
		close(fds[0]);
		close(fds[1]);
		end(&g);
	}
}

/* Refuses each call that could wait for a file; the ring's requests are no calls. */
static void forbid_waiting(void)
{
	static const unsigned int calls[] = { __NR_fdatasync, __NR_fsync, __NR_pread64, __NR_pwrite64,
					      __NR_read, __NR_write };
	struct sock_filter rules[2 * ARRAY_SIZE(calls) + 2];
	struct sock_fprog program = { .len = ARRAY_SIZE(rules), .filter = rules };
	unsigned n = 0;

	rules[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						  offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		rules[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
		rules[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EDOM);
	}
	rules[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);

	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		skip("this kernel has no seccomp filters");
}

static void *run_without_waiting(void *data)
{
	struct gmem_transfer *transfer = data;
	int ret;

	forbid_waiting();
	while ((ret = gmem_transfer_step(transfer, 0)) > 0) {
		struct pollfd pollfd = { .fd = -1 };

		pollfd.fd = gmem_transfer_fd(transfer, &pollfd.events);
		if (ret == GMEM_TRANSFER_WAIT)
			CHECK_EQ(poll(&pollfd, 1, 5000), 1);
	}
	return (void *)(intptr_t)ret;
}

TEST(no_step_makes_a_call_that_waits_for_the_file)
{
	GMEM_OPTS(gmem_transfer_opts, sync, .flags = GMEM_TRANSFER_SYNC);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	struct bench g;

	begin(&g);
	for (unsigned i = 0; i < 4; i++) {
		pthread_t thread;
		void *ret;

		/* save, from the page cache, and after that was emptied; load */
		if (i == 2)
			posix_fadvise(g.fd, 0, 0, POSIX_FADV_DONTNEED);
		if (i == 0)
			OK(gmem_vm_save_begin(g.lab.vm, g.fd, &sync, &transfer));
		else if (i < 3)
			OK(gmem_vm_restore_begin(g.lab.vm, g.fd, NULL, &transfer));
		else
			OK(gmem_vm_load_begin(g.lab.vm, BASE, g.fd, 0, SIZE, NULL, &transfer));
		OK(gmem_transfer_get_result(transfer, &result));
		if (result.engine != GMEM_ENGINE_IO_URING)
			skip("there is no io_uring here");
		CHECK_EQ(pthread_create(&thread, NULL, run_without_waiting, transfer), 0);
		pthread_join(thread, &ret);
		CHECK_RESULT((int)(intptr_t)ret, 0);
		OK(gmem_transfer_free(transfer));
		if (i < 3)
			check_guest(&g, 1);
	}
	end(&g);
}

/* ---- what the library's own rings leave to the threads that use them ---- */

/*
 * To end a ring the kernel interrupts threads that made it or submitted to it, a while after.
 * No signal comes with that, but a wait for one ends with EINTR.
 */
static void check_nothing_interrupts(void)
{
	const struct timespec some_time = { .tv_nsec = 60 * 1000000 };
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR2);
	errno = 0;
	CHECK_EQ(sigtimedwait(&signals, NULL, &some_time), -1);
	CHECK_EQ(errno, EAGAIN);
}

static unsigned count_threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	unsigned count = 0;

	CHECK(tasks);
	while (readdir(tasks))
		count++;
	closedir(tasks);
	return count - 2;
}

struct work {
	struct bench *g;
	struct gmem_transfer *transfer;
	void (*part)(struct work *work);
	sem_t done, end;
};

static void *do_part(void *data)
{
	struct work *work = data;

	work->part(work);
	sem_post(&work->done);
	check_nothing_interrupts();
	sem_wait(&work->end);
	check_nothing_interrupts();
	return NULL;
}

static void begin_save(struct work *work)
{
	GMEM_OPTS(gmem_transfer_opts, sync, .flags = GMEM_TRANSFER_SYNC);

	OK(gmem_vm_save_begin(work->g->lab.vm, work->g->fd, &sync, &work->transfer));
}

static void step_some(struct work *work)
{
	step_until_it_waits(work->transfer, 4);
	check_nothing_interrupts();
}

static void step_to_the_end(struct work *work)
{
	int ret;

	do {
		ret = gmem_transfer_step(work->transfer, 1);
		CHECK(ret >= 0);
	} while (ret != GMEM_TRANSFER_DONE);
}

static void free_it(struct work *work)
{
	OK(gmem_transfer_free(work->transfer));
}

/* Threads do the parts one after the other, but outlive the last. */
static void do_in_threads(struct bench *g, void (*const parts[4])(struct work *work))
{
	struct gmem_transfer *transfer = NULL;
	struct work works[4];
	pthread_t threads[4];

	for (unsigned i = 0; i < 4; i++) {
		works[i] = (struct work){ .g = g, .part = parts[i], .transfer = transfer };
		sem_init(&works[i].done, 0, 0);
		sem_init(&works[i].end, 0, 0);
		CHECK_EQ(pthread_create(&threads[i], NULL, do_part, &works[i]), 0);
		while (sem_wait(&works[i].done))
			;
		transfer = works[i].transfer;
	}
	for (unsigned i = 0; i < 4; i++)
		sem_post(&works[i].end);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

TEST(a_ring_interrupts_no_thread_that_uses_it)
{
	static void (*const ways[][4])(struct work *work) = {
		{ begin_save, step_some, step_to_the_end, free_it },
		{ begin_save, step_some, step_some, free_it },
		{ begin_save, step_to_the_end, step_to_the_end, free_it },
	};
	GMEM_OPTS(gmem_transfer_opts, sync, .flags = GMEM_TRANSFER_SYNC);
	GMEM_OPTS(gmem_transfer_result, result);
	struct gmem_transfer *transfer;
	unsigned threads;
	struct bench g;
	int ends[2], empty;

	begin(&g);
	threads = count_threads();
	OK(gmem_vm_save(g.lab.vm, g.fd, &sync, &result));
	if (result.engine != GMEM_ENGINE_IO_URING)
		skip("there is no io_uring here");
	check_nothing_interrupts();
	posix_fadvise(g.fd, 0, 0, POSIX_FADV_DONTNEED);
	OK(gmem_image_verify(g.fd, NULL, NULL));
	check_nothing_interrupts();
	OK(gmem_vm_restore(g.lab.vm, g.fd, NULL, NULL));
	check_nothing_interrupts();

	/* a request that is cancelled, a failure, a pipe that nobody reads */
	WORKS(pipe(ends));
	OK(gmem_vm_load_begin(g.lab.vm, BASE, ends[0], 0, MIB, NULL, &transfer));
	CHECK_EQ(gmem_transfer_step(transfer, 0), GMEM_TRANSFER_WAIT);
	OK(gmem_transfer_free(transfer));
	check_nothing_interrupts();
	empty = lab_new_file();
	CHECK_RESULT(gmem_vm_load(g.lab.vm, BASE, empty, 0, MIB, NULL, NULL), -ENODATA);
	close(empty);
	close(ends[0]);
	CHECK_RESULT(gmem_vm_save(g.lab.vm, ends[1], NULL, NULL), -EPIPE);
	close(ends[1]);
	check_nothing_interrupts();

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		in_case("way %zu", i);
		do_in_threads(&g, ways[i]);
	}
	check_nothing_interrupts();
	/* also of the kernel's, as those that write and sync */
	CHECK_EQ(count_threads(), threads);
	end(&g);
}

TEST(asking_for_io_uring_interrupts_nothing)
{
	GMEM_OPTS(gmem_caps_opts, opts, .flags = GMEM_CAPS_NO_SELFTEST);
	struct gmem_caps *caps;
	struct bench g;

	begin(&g);
	for (unsigned i = 0; i < 5; i++) {
		OK(gmem_caps_new(g.lab.m.vm_fd, &opts, &caps));
		gmem_caps_free(caps);
		check_nothing_interrupts();
	}
	end(&g);
}

static void fork_in_a_transfer(int namespaces)
{
	struct gmem_transfer *transfer;
	struct bench g;
	int status;
	pid_t pid;

	begin(&g);
	OK(gmem_vm_save_begin(g.lab.vm, g.fd, NULL, &transfer));
	step_until_it_waits(transfer, 2);
	WORKS(unshare(namespaces));
	pid = (pid_t)WORKS(fork());
	if (pid == 0) {
		alarm(30);
		if (namespaces && getpid() != 1)
			_exit(2);
		do {
			status = gmem_transfer_step(transfer, 1);
		} while (status > 0);
		_exit(status == -EIO && gmem_transfer_free(transfer) == 0 ? 0 : 1);
	}
	WORKS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
	while (gmem_transfer_step(transfer, 1) > 0)
		;
	OK(gmem_transfer_free(transfer));
	OK(gmem_image_verify(g.fd, NULL, NULL));
	end(&g);
}

TEST(a_forked_child_can_only_free_a_transfer)
{
	fork_in_a_transfer(0);
}

/* Each of them the first process of its PID namespace */
TEST(a_child_with_its_parents_pid_can_only_free_a_transfer)
{
	int status;
	pid_t pid;

	if (unshare(CLONE_NEWPID))
		skip("no PID namespaces: %s", strerror(errno));
	fflush(stdout);
	pid = (pid_t)WORKS(fork());
	if (pid == 0) {
		CHECK_EQ(getpid(), 1);
		fork_in_a_transfer(CLONE_NEWPID);
		fflush(stdout);
		_exit(0);
	}
	WORKS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
}

/* Both have the ring's queue: the child must not write there what the parent submits. */
TEST(a_forked_child_that_frees_leaves_the_requests_of_its_parent)
{
	struct gmem_transfer *transfer;
	struct bench g;
	int status, ret;
	pid_t pid;

	for (unsigned steps = 1; steps < 9; steps++) {
		begin(&g);
		OK(gmem_vm_save_begin(g.lab.vm, g.fd, NULL, &transfer));
		for (unsigned i = 0; i < steps; i++)
			CHECK(gmem_transfer_step(transfer, 0) >= 0);
		pid = (pid_t)WORKS(fork());
		if (pid == 0)
			_exit(gmem_transfer_free(transfer) == 0 ? 0 : 1);
		WORKS(waitpid(pid, &status, 0));
		CHECK_EQ(status, 0);
		do {
			ret = gmem_transfer_step(transfer, 1);
		} while (ret > 0);
		OK(ret);
		OK(gmem_transfer_free(transfer));
		OK(gmem_image_verify(g.fd, NULL, NULL));
		end(&g);
	}
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
