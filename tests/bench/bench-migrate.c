/* SPDX-License-Identifier: MIT */
/*
 * bench-migrate: how long a guest stands still while its memory goes to another process, over
 * a socket, against a copy of all memory of a guest that stands still from the beginning.
 *
 * All of the guest's memory has contents, and a thread writes to so many of its pages in a
 * second, each with a write of a view. The time ends when the receiver has answered that all
 * memory is in place. Both ways take turns.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

#include <gmem.h>

#include "bench.h"

#define MIB ((uint64_t)1 << 20)
#define BLOCK 4096
#define MOST_ROUNDS 99
#define RECEIVER "--receive"
#define SOCKET_FD 3

/* When a VMM would stop the guest */
#define PAUSE_NS UINT64_C(10000000)
#define MOST_MIGRATION_ROUNDS 30

static const char usage[] =
	"usage: bench-migrate [MIB [ROUNDS]]\n"
	"\n"
	"How long a guest of MIB, by default 1024, stands still while it is migrated, and while it\n"
	"is stopped and copied. ROUNDS by default 5, at most 99.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

static uint64_t size;
static int kvm_fd;

static uint64_t now(void)
{
	struct timespec t;

	bench_must(clock_gettime(CLOCK_MONOTONIC, &t), "clock_gettime");
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static struct gmem_vm *new_vm(void)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_MAPPED, GMEM_BACKING_HOST });
	GMEM_OPTS(gmem_region_opts, opts, .flags = 0);
	int vm_fd = bench_must(ioctl(kvm_fd, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct gmem_region *region;
	struct gmem_plan *plan;
	struct gmem_vm *vm;

	bench_gmem_must(gmem_vm_new(vm_fd, NULL, &vm), "VM");
	bench_gmem_must(gmem_plan_new(gmem_vm_caps(vm), &request, &plan), "plan");
	opts.plan = plan;
	bench_gmem_must(gmem_region_add(vm, 0, size, &opts, &region), "region");
	gmem_plan_free(plan);
	return vm;
}

/* ---- the receiver, a process of its own each time ---- */

static int receive(void)
{
	struct gmem_vm *vm = new_vm();

	/* All that can be done before the source begins is. */
	bench_must((int)write(SOCKET_FD, "", 1), "ready");
	bench_gmem_must(gmem_vm_restore(vm, SOCKET_FD, NULL, NULL), "restore");
	bench_must((int)write(SOCKET_FD, "", 1), "answering");
	return 0;
}

static pid_t begin_receiver(int *ret_sock)
{
	char name[] = "bench-migrate", option[] = RECEIVER, mib[24];
	char *arguments[] = { name, option, mib, NULL };
	posix_spawn_file_actions_t actions;
	int fds[2];
	pid_t pid;
	char byte;

	snprintf(mib, sizeof(mib), "%" PRIu64, size / MIB);
	bench_must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "socketpair");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fds[1], SOCKET_FD);
	errno = posix_spawn(&pid, "/proc/self/exe", &actions, NULL, arguments, environ);
	bench_must(errno ? -1 : 0, "spawn");
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	bench_must(read(fds[0], &byte, 1) == 1 ? 0 : -1, "the receiver");
	*ret_sock = fds[0];
	return pid;
}

static void end_receiver(pid_t pid, int sock)
{
	int status;

	close(sock);
	bench_must(waitpid(pid, &status, 0), "waitpid");
	if (status) {
		fprintf(stderr, "bench-migrate: the receiver ended with 0x%x\n", (unsigned)status);
		exit(EXIT_FAILURE);
	}
}

static void await_answer(int sock)
{
	char byte;

	bench_must(read(sock, &byte, 1) == 1 ? 0 : -1, "the receiver's answer");
}

/* ---- the guest ---- */

static struct guest {
	struct gmem_vm *vm;
	pthread_t writer;
	atomic_bool stops;
	uint64_t bytes_per_second;
} guest;

/* Writes what is due each millisecond: to one page after the other, from the start again and again. */
static void *run_writer(void *data)
{
	const struct timespec rest = { .tv_nsec = 1000000 };
	uint64_t began = now(), done = 0, at = 0;
	struct gmem_view *view;

	(void)data;
	bench_gmem_must(gmem_view_new(guest.vm, &view), "a view");
	while (!atomic_load(&guest.stops)) {
		uint64_t due = (uint64_t)((double)(now() - began) / 1e9 * (double)guest.bytes_per_second);

		for (; done < due && !atomic_load(&guest.stops); done += BLOCK) {
			bench_gmem_must(gmem_view_write(view, at, &done, sizeof(done), NULL), "writing");
			at = (at + BLOCK) % size;
		}
		nanosleep(&rest, NULL);
	}
	gmem_view_free(view);
	return NULL;
}

static void begin_writer(unsigned percent)
{
	guest.bytes_per_second = size / 100 * percent;
	atomic_store(&guest.stops, false);
	errno = pthread_create(&guest.writer, NULL, run_writer, NULL);
	bench_must(errno ? -1 : 0, "a thread");
}

static void end_writer(void)
{
	atomic_store(&guest.stops, true);
	pthread_join(guest.writer, NULL);
}

static void fill(void)
{
	struct gmem_view *view;
	uint64_t words[BLOCK / 8];

	bench_gmem_must(gmem_view_new(guest.vm, &view), "a view");
	for (uint64_t at = 0; at < size; at += BLOCK) {
		for (size_t i = 0; i < BLOCK / 8; i++)
			words[i] = (at + i + 1) * 0x9e3779b97f4a7c15;
		bench_gmem_must(gmem_view_write(view, at, words, sizeof(words), NULL), "filling");
	}
	gmem_view_free(view);
}

/* ---- both ways ---- */

static double stop_and_copy(void)
{
	uint64_t began;
	pid_t pid;
	int sock;

	pid = begin_receiver(&sock);
	began = now();
	bench_gmem_must(gmem_vm_save(guest.vm, sock, NULL, NULL), "saving");
	await_answer(sock);
	began = now() - began;
	end_receiver(pid, sock);
	return (double)began / 1e6;
}

struct outcome {
	double pause_ms, expected_ms, total_ms, rounds;
};

static struct outcome migrate(unsigned percent)
{
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	struct gmem_migration *migration;
	uint64_t began, stopped;
	struct outcome outcome;
	pid_t pid;
	int sock;

	pid = begin_receiver(&sock);
	began = now();
	bench_gmem_must(gmem_migration_new(guest.vm, sock, NULL, &migration), "migration");
	begin_writer(percent);
	do
		bench_gmem_must(gmem_migration_round(migration, &status), "a round");
	while (status.pause_ns > PAUSE_NS && status.round < MOST_MIGRATION_ROUNDS);

	stopped = now();
	end_writer();
	outcome.expected_ms = (double)status.pause_ns / 1e6;
	bench_gmem_must(gmem_migration_finish(migration, &status), "the last round");
	await_answer(sock);
	outcome.pause_ms = (double)(now() - stopped) / 1e6;
	outcome.total_ms = (double)(now() - began) / 1e6;
	outcome.rounds = (double)status.round;
	gmem_migration_free(migration);
	end_receiver(pid, sock);
	return outcome;
}

static void measure(unsigned percent, size_t rounds)
{
	double pause[MOST_ROUNDS], expected[MOST_ROUNDS], total[MOST_ROUNDS], count[MOST_ROUNDS];
	double base[MOST_ROUNDS], ratio[MOST_ROUNDS];

	for (size_t i = 0; i < rounds; i++) {
		struct outcome outcome;

		bench_progress(i, rounds);
		base[i] = stop_and_copy();
		outcome = migrate(percent);
		pause[i] = outcome.pause_ms;
		expected[i] = outcome.expected_ms;
		total[i] = outcome.total_ms;
		count[i] = outcome.rounds;
		ratio[i] = pause[i] / base[i];
	}
	bench_row("migrate/%u-percent", percent);
	printf("%3u %% a second          ", percent);
	bench_row_figure(bench_figure_of(pause, rounds), "ms");
	bench_print(bench_figure_of(pause, rounds));
	bench_print(bench_figure_of(expected, rounds));
	bench_print(bench_figure_of(total, rounds));
	bench_print(bench_figure_of(count, rounds));
	bench_print(bench_figure_of(base, rounds));
	bench_print_against("stop and copy", bench_figure_of(ratio, rounds), 0.05);
	printf("\n");
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "pause ms", "expected ms", "in all ms", "rounds", "stopped ms",
					     "ratio" };
	static const unsigned percents[] = { 1, 10, 50 };
	bool is_receiver = argc == 3 && !strcmp(argv[1], RECEIVER);
	const char *memory = is_receiver ? argv[2] : argc > 1 ? argv[1] : bench_quick() ? "16" : "1024";
	uint64_t mib = strtoull(memory, NULL, 10);
	size_t rounds = argc > 2 && !is_receiver ? strtoul(argv[2], NULL, 10) : bench_quick() ? 2 : 5;

	if (!mib || !rounds || rounds > MOST_ROUNDS || argc > 3) {
		fputs(usage, argc > 1 && !strcmp(argv[1], "--help") ? stdout : stderr);
		return argc > 1 && !strcmp(argv[1], "--help") ? 0 : 1;
	}
	size = mib * MIB;
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0) {
		printf("bench-migrate cannot run here: /dev/kvm: %s\n", strerror(errno));
		return EXIT_CANNOT_RUN;
	}
	bench_gmem_must(gmem_recovery_enable(), "recovery");
	if (is_receiver)
		return receive();

	guest.vm = new_vm();
	fill();
	printf("%" PRIu64 " MiB, %zu rounds\n%-24s", mib, rounds, "");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
	for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); i++)
		measure(percents[i], rounds);
	gmem_vm_free(guest.vm);
	return 0;
}
