/* SPDX-License-Identifier: MIT */
/*
 * What the scripts for bpftrace ask about, on a scripted kernel. usage: traced WHAT, which is
 * converts, faults, populates, waits or peers. The thread that does it is called "traced".
 */
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/kvm_compat.h"
#include "unit.h"
#include "unit_share.h"

#define PAGE ((uint64_t)4096)
#define SIZE (1024 * PAGE)

/* Three times to private, of which one changes nothing, and once back; one is refused. */
static void converts(struct unit *unit)
{
	unit_region_backed(unit, 0, 1024, GMEM_BACKING_PRIVATE);
	assert_ok(gmem_vm_convert(unit->vm, 0, 16 * PAGE, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_ok(gmem_vm_convert(unit->vm, 0, 16 * PAGE, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_ok(gmem_vm_convert(unit->vm, 32 * PAGE, 16 * PAGE, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_ok(gmem_vm_convert(unit->vm, 0, 8 * PAGE, GMEM_STATE_SHARED, NULL, NULL));
	assert_int_equal(gmem_vm_convert(unit->vm, SIZE, PAGE, GMEM_STATE_SHARED, NULL, NULL), -ENOENT);
}

/* Seven accesses that need private memory at 6 MiB, two that need shared memory at 8 MiB */
static void faults(struct unit *unit)
{
	struct kvm_run run = { .exit_reason = KVM_EXIT_MEMORY_FAULT };
	struct gmem_exit decoded;

	(void)unit;
	for (int i = 0; i < 9; i++) {
		const struct gmem_kvm_memory_fault fault = {
			.flags = i < 7 ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0,
			.gpa = ((uint64_t)(i < 7 ? 6 : 8) << 20) + (uint64_t)i * PAGE,
			.size = PAGE,
		};

		memcpy(&run.hw, &fault, sizeof(fault));
		assert_ok(gmem_exit_decode(&run, -1, EFAULT, &decoded));
	}
}

static void populates(struct unit *unit)
{
	unit_region_backed(unit, 0, 1024, GMEM_BACKING_SHARED);
	assert_ok(gmem_vm_populate(unit->vm, 0, 64 * PAGE, NULL, NULL));
	assert_ok(gmem_vm_populate(unit->vm, 64 * PAGE, 32 * PAGE, NULL, NULL));
	assert_ok(gmem_vm_discard(unit->vm, 0, 16 * PAGE, NULL, NULL));
}

static void *free_later(void *lease)
{
	usleep(100000);
	gmem_lease_free(lease);
	return NULL;
}

/* A conversion waits 100 ms for a lease. */
static void waits(struct unit *unit)
{
	GMEM_OPTS(gmem_convert_opts, opts, .wait_ms = 60000);
	struct gmem_lease *lease;
	pthread_t thread;

	unit_region_backed(unit, 0, 1024, GMEM_BACKING_PRIVATE);
	assert_ok(gmem_lease_new(unit->vm, 0, PAGE, NULL, &lease));
	assert_int_equal(pthread_create(&thread, NULL, free_later, lease), 0);
	assert_ok(gmem_vm_convert(unit->vm, 0, PAGE, GMEM_STATE_PRIVATE, &opts, NULL));
	assert_int_equal(pthread_join(thread, NULL), 0);
}

/* A peer that takes 50 ms for each answer, and one that answers nothing */
static void peers(struct unit *unit)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	struct gmem_peer *slow, *mute;
	struct gmem_export *exporter;
	struct gmem_import *import;
	int memfd = unit_memfd(SIZE, UNIT_SEALED), to_slow[2], to_mute[2];
	char *hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	struct gmem_plan *plan = unit_plan(unit, GMEM_BACKING_PRIVATE);
	struct gmem_region *region;

	opts.plan = plan;
	opts.hva = hva;
	assert_ptr_not_equal(hva, MAP_FAILED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, to_slow), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, to_mute), 0);
	assert_ok(gmem_region_add(unit->vm, 0, SIZE, &opts, &region));
	assert_ok(gmem_export_new(unit->vm, NULL, &exporter));
	assert_ok(gmem_export_add_memory(exporter, hva, SIZE, memfd, 0));
	assert_ok(gmem_peer_add(exporter, to_slow[0], NULL, &slow));
	assert_ok(gmem_peer_add(exporter, to_mute[0], NULL, &mute));
	assert_ok(gmem_import_new(to_slow[1], NULL, &import));
	while (gmem_peer_status(slow) == 0) {
		assert_ok(gmem_export_dispatch(exporter));
		usleep(50000);
		assert_true(gmem_import_dispatch(import) >= 0);
	}
	assert_int_equal(gmem_peer_status(slow), 1);
	gmem_import_free(import);
	/* Not orderly: the mute peer would be disconnected, which is an answer, too. */
	_exit(0);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*act)(struct unit *unit); } acts[] = {
		{ "converts", converts }, { "faults", faults }, { "populates", populates },
		{ "waits", waits }, { "peers", peers },
	};
	struct unit unit;

	prctl(PR_SET_NAME, "traced");
	for (size_t i = 0; argc == 2 && i < ARRAY_SIZE(acts); i++) {
		if (strcmp(argv[1], acts[i].name) != 0)
			continue;
		unit_begin_vm(&unit, strcmp(argv[1], "populates") ? "7.3-swp-t1" : "6.18");
		acts[i].act(&unit);
		_exit(0);
	}
	return 2;
}
