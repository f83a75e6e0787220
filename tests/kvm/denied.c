/* SPDX-License-Identifier: MIT */
/*
 * Each call that libgmem can do without, or whose refusal it has to name, is refused in turn
 * with EPERM and with ENOSYS, as by a container's filter or a kernel without it. Then each
 * function works, or is refused before it changed anything, with a sentence that names the call.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "confine.h"

#ifndef __NR_cachestat
#define __NR_cachestat 451	/* Linux 6.5 */
#endif

/* A call, or a request of ioctl(2) or an advice of madvise(2) */
struct denial {
	const char *name;
	uint32_t call;
	uint32_t argument;	/* its number */
	uint32_t value;		/* 0: whatever it is */
	const char *word;	/* of which the sentence has to be, if a function is refused */
};

static const struct denial denials[] = {
	{ "process_vm_readv", __NR_process_vm_readv, 0, 0, "process_vm_readv" },
	{ "mincore", __NR_mincore, 0, 0, "mincore" },
	{ "cachestat", __NR_cachestat, 0, 0, "cachestat" },
	{ "membarrier", __NR_membarrier, 0, 0, "membarrier" },
	{ "mbind", __NR_mbind, 0, 0, "mbind" },
	{ "get_mempolicy", __NR_get_mempolicy, 0, 0, "get_mempolicy" },
	{ "move_pages", __NR_move_pages, 0, 0, "move_pages" },
	{ "io_uring_setup", __NR_io_uring_setup, 0, 0, "io_uring" },
	{ "io_uring_enter", __NR_io_uring_enter, 0, 0, "io_uring" },
	{ "kcmp", __NR_kcmp, 0, 0, "kcmp" },
	{ "F_DUPFD_QUERY", __NR_fcntl, 1, 1027, "F_DUPFD_QUERY" },
	{ "memfd_create", __NR_memfd_create, 0, 0, "memfd" },
	{ "fallocate", __NR_fallocate, 0, 0, "fallocate" },
	{ "msync", __NR_msync, 0, 0, "msync" },
	{ "mremap", __NR_mremap, 0, 0, "mremap" },
	{ "preadv2", __NR_preadv2, 0, 0, "preadv2" },
	{ "prlimit64", __NR_prlimit64, 0, 0, "prlimit" },
	{ "getrandom", __NR_getrandom, 0, 0, "getrandom" },
	{ "sched_getaffinity", __NR_sched_getaffinity, 0, 0, "sched_getaffinity" },
	{ "sched_setaffinity", __NR_sched_setaffinity, 0, 0, "sched_setaffinity" },
	{ "clone", __NR_clone, 0, 0, "clone" },
	{ "clone3", __NR_clone3, 0, 0, "clone" },
	{ "getsockopt", __NR_getsockopt, 0, 0, "getsockopt" },
	{ "readlink", __NR_readlinkat, 0, 0, "readlink" },
	{ "rt_sigpending", __NR_rt_sigpending, 0, 0, "rt_sigpending" },
	{ "rt_sigtimedwait", __NR_rt_sigtimedwait, 0, 0, "rt_sigtimedwait" },
	{ "rt_sigaction", __NR_rt_sigaction, 0, 0, "SIGBUS" },
	{ "timerfd_create", __NR_timerfd_create, 0, 0, "timer" },
	{ "PAGEMAP_SCAN", __NR_ioctl, 1, 0xc0606610, "PAGEMAP_SCAN" },
	{ "PROCMAP_QUERY", __NR_ioctl, 1, 0xc0686611, "PROCMAP_QUERY" },
	{ "open", __NR_openat, 0, 0, "open" },
	{ "MADV_DONTDUMP", __NR_madvise, 2, MADV_DONTDUMP, "MADV_DONTDUMP" },
	{ "MADV_POPULATE_READ", __NR_madvise, 2, 22, "MADV_POPULATE_READ" },
	{ "MADV_POPULATE_WRITE", __NR_madvise, 2, 23, "MADV_POPULATE_WRITE" },
	{ "MADV_DONTNEED", __NR_madvise, 2, MADV_DONTNEED, "MADV_DONTNEED" },
	{ "MADV_REMOVE", __NR_madvise, 2, MADV_REMOVE, "MADV_REMOVE" },
	{ "MADV_WIPEONFORK", __NR_madvise, 2, 18, "MADV_WIPEONFORK" },
	{ "futex FUTEX_WAKE_OP", __NR_futex, 1, 5 | 128, "futex" },
};

static void deny(const struct denial *denial, int error)
{
	const uint32_t refuse = SECCOMP_RET_ERRNO | (uint32_t)error;
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denial->call, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 (uint32_t)offsetof(struct seccomp_data, args) + 8 * denial->argument),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denial->value, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, refuse),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = ARRAY_SIZE(code), .filter = code };
	long ret;

	if (!denial->value)
		code[3] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 0, 0, 0);
	WORKS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	ret = SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
	if (ret == -EINVAL)
		skip("this kernel is built without seccomp filters");
	CHECK_EQ(ret, 0);
}

/* ---- what is called ---- */

static const struct denial *the_denial;

/* Works, or is refused with a sentence about the call; true if it worked */
static bool works(int ret, const char *what)
{
	if (ret >= 0)
		return true;
	if (getenv("GMEM_TEST_LIST"))
		printf("# %s: %s: %d %s\n", the_denial->name, what, ret, gmem_last_error());
	else if (!strstr(gmem_last_error(), the_denial->word))
		FAIL("without %s, %s: %d, and a sentence of something else: %s", the_denial->name, what, ret,
		     gmem_last_error());
	return false;
}
#define WORKS_OR_SAYS(call) works((call), #call)

/* The memory is what it was before: a refusal changed nothing. */
static void check_bytes(struct site *s, uint8_t wanted)
{
	const uint8_t *hva = gmem_region_hva(s->region);

	for (uint64_t i = 0; i < s->size; i++)
		CHECK_EQ(hva[i], wanted);
}

static void fill(struct site *s, uint8_t byte)
{
	memset(gmem_region_hva(s->region), byte, s->size);
}

static void try_access(struct site *s)
{
	uint64_t word, done = 77;
	struct gmem_view *view;
	char bytes[64];

	if (!WORKS_OR_SAYS(gmem_view_new(s->lab.vm, &view)))
		return;
	fill(s, 5);
	WORKS_OR_SAYS(gmem_view_read(view, BASE, bytes, sizeof(bytes), &done));
	WORKS_OR_SAYS(gmem_view_load(view, BASE, 8, GMEM_ACQUIRE, &word));
	check_bytes(s, 5);
	if (WORKS_OR_SAYS(gmem_view_fill(view, BASE, 6, s->size, NULL)))
		check_bytes(s, 6);
	WORKS_OR_SAYS(gmem_view_store(view, BASE, 8, GMEM_RELEASE, 7));
	gmem_view_free(view);
}

static void try_layout(struct site *s)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan);
	struct gmem_region *other, *upper;

	if (WORKS_OR_SAYS(gmem_region_add(s->lab.vm, GIB, s->size, &opts, &other))) {
		WORKS_OR_SAYS(gmem_region_move(other, 2 * GIB));
		if (WORKS_OR_SAYS(gmem_region_split(other, s->lab.page, &upper)))
			WORKS_OR_SAYS(gmem_region_remove(upper));
		WORKS_OR_SAYS(gmem_region_remove(other));
	}
	if (s->backing != GMEM_BACKING_HOST)
		return;
	opts.memory = &memory;
	if (WORKS_OR_SAYS(gmem_region_add(s->lab.vm, 3 * GIB, s->size, &opts, &other)))
		WORKS_OR_SAYS(gmem_region_remove(other));
	opts.memory = NULL;
	opts.flags = GMEM_REGION_HVA;
	opts.hva = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (WORKS_OR_SAYS(gmem_region_add(s->lab.vm, 4 * GIB, s->size, &opts, &other)))
		WORKS_OR_SAYS(gmem_region_remove(other));
}

static void try_pages(struct site *s)
{
	GMEM_OPTS(gmem_populate_opts, opts, .workers = 2);
	GMEM_OPTS(gmem_stats, stats, .flags = GMEM_STATS_RESIDENT);
	GMEM_OPTS(gmem_numa_opts, numa, .policy = GMEM_NUMA_PREFERRED, .nodes = { 1 });
	struct gmem_footprint footprint;

	fill(s, 5);
	WORKS_OR_SAYS(gmem_vm_stats(s->lab.vm, &stats));
	WORKS_OR_SAYS(gmem_vm_populate(s->lab.vm, BASE, s->size, NULL, &footprint));
	WORKS_OR_SAYS(gmem_vm_populate(s->lab.vm, BASE, s->size, &opts, NULL));
	opts.flags = GMEM_POPULATE_RESERVE;
	WORKS_OR_SAYS(gmem_vm_populate(s->lab.vm, BASE, s->size, &opts, NULL));
	check_bytes(s, 5);
	if (WORKS_OR_SAYS(gmem_vm_discard(s->lab.vm, BASE, s->size, NULL, NULL)))
		check_bytes(s, 0);
	else
		check_bytes(s, 5);
	fill(s, 5);
	if (!WORKS_OR_SAYS(gmem_vm_discard(s->lab.vm, BASE, s->size, NULL, &footprint))) {
		check_bytes(s, 5);
		return;
	}
	check_bytes(s, 0);
	/* The pages are there again: a policy would come too late. */
	if (!WORKS_OR_SAYS(gmem_vm_discard(s->lab.vm, BASE, s->size, NULL, NULL)))
		return;
	/* A guest_memfd follows no policy before Linux 6.19, whatever is refused. */
	if (s->backing == GMEM_BACKING_HOST)
		WORKS_OR_SAYS(gmem_vm_set_numa(s->lab.vm, BASE, s->size, &numa, NULL));
}

static void try_transfers(struct site *s)
{
	GMEM_OPTS(gmem_transfer_opts, opts, .flags = GMEM_TRANSFER_SYNC);
	int fd = memfd_create("image", MFD_CLOEXEC);
	char path[] = "/tmp/gmem-denied-XXXXXX";

	if (fd < 0)
		fd = (int)WORKS(mkstemp(path));
	fill(s, 5);
	if (WORKS_OR_SAYS(gmem_vm_save(s->lab.vm, fd, &opts, NULL))) {
		fill(s, 9);
		opts.flags = 0;
		if (WORKS_OR_SAYS(gmem_vm_restore(s->lab.vm, fd, &opts, NULL)))
			check_bytes(s, 5);
	} else {
		CHECK_EQ(lseek(fd, 0, SEEK_END), 0);
	}
	fill(s, 5);
	CHECK_EQ(pwrite(fd, gmem_region_hva(s->region), s->size, 0), s->size);
	if (!WORKS_OR_SAYS(gmem_vm_load(s->lab.vm, BASE, fd, 0, s->size, NULL, NULL)))
		check_bytes(s, 5);
	WORKS_OR_SAYS(gmem_vm_dump(s->lab.vm, fd, NULL));
	close(fd);
}

static void try_export(struct site *s)
{
	struct gmem_export *exporter;
	struct gmem_import *import;
	struct gmem_peer *peer;
	int sockets[2], status = 0;

	if (s->backing == GMEM_BACKING_HOST || !WORKS_OR_SAYS(gmem_export_new(s->lab.vm, NULL, &exporter)))
		return;
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	if (WORKS_OR_SAYS(gmem_import_new(sockets[1], NULL, &import))) {
		if (WORKS_OR_SAYS(gmem_peer_add(exporter, sockets[0], NULL, &peer))) {
			while (status == 0 && WORKS_OR_SAYS(gmem_export_dispatch(exporter)) &&
			       WORKS_OR_SAYS(gmem_import_dispatch(import)))
				status = gmem_peer_status(peer);
			gmem_peer_remove(peer);
		}
		gmem_import_free(import);
	}
	gmem_export_free(exporter);
}

static void try_all(struct site *s)
{
	try_access(s);
	try_layout(s);
	try_pages(s);
	try_transfers(s);
	try_export(s);
}

/* ---- each call, for each way of backing ---- */

static bool recovers;
static int the_errno;

static void denied_late(uint32_t backing)
{
	struct site s;

	site_new(&s, DEFAULT_VM, backing, PAGES, recovers);
	deny(the_denial, the_errno);
	try_all(&s);
	gmem_vm_free(s.lab.vm);
	leave();
}

static void each_call(void (*run)(uint32_t backing), bool with_recovery, int error)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip("a sanitizer cannot do without all of its calls");
#endif
	recovers = with_recovery;
	the_errno = error;
	for (size_t i = 0; i < ARRAY_SIZE(denials); i++) {
		the_denial = &denials[i];
		note("%s: %s%s", the_denial->name, the_errno == EPERM ? "EPERM" : "ENOSYS", recovers ? ", with recovery" : "");
		each_backing(run);
	}
}

TEST(each_call_that_is_refused_is_done_without_or_named)
{
	each_call(denied_late, false, ENOSYS);
}

TEST(each_call_that_is_refused_is_done_without_or_named_with_recovery)
{
	each_call(denied_late, true, EPERM);
}

/* From the beginning: reports, plans, handles */
static void denied_early(uint32_t backing)
{
	struct site s;

	lab_new(&s.lab, DEFAULT_VM);
	gmem_vm_free(s.lab.vm);
	deny(the_denial, the_errno);
	if (!WORKS_OR_SAYS(gmem_vm_new(s.lab.m.vm_fd, NULL, &s.lab.vm)))
		leave();
	if (recovers && !WORKS_OR_SAYS(gmem_recovery_enable()))
		leave();
	{
		GMEM_OPTS(gmem_request, request, .backings = { backing });
		GMEM_OPTS(gmem_region_opts, opts);

		s.backing = backing;
		s.size = PAGES * s.lab.page;
		if (!WORKS_OR_SAYS(gmem_plan_new(gmem_vm_caps(s.lab.vm), &request, &s.plan)))
			leave();
		opts.plan = s.plan;
		if (!WORKS_OR_SAYS(gmem_region_add(s.lab.vm, BASE, s.size, &opts, &s.region)))
			leave();
	}
	try_all(&s);
	gmem_vm_free(s.lab.vm);
	leave();
}

/* A report takes the two for different things: old kernels, and policies. */
TEST(each_call_that_is_refused_from_the_beginning_is_done_without_or_named)
{
	each_call(denied_early, true, EPERM);
}

TEST(each_call_that_is_missing_from_the_beginning_is_done_without_or_named)
{
	each_call(denied_early, true, ENOSYS);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
