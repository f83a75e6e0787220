/* SPDX-License-Identifier: MIT */
/* vm_core: what was made of a VM may be freed after it, and does nothing else any more */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/kvm_compat.h"
#include "unit.h"
#include "unit_share.h"

#define PAGE ((uint64_t)4096)

/* One of each */
struct things {
	struct gmem_lease *lease;
	struct gmem_listener *listener, *with_layout;
	struct gmem_change *change;
	struct gmem_populate *job;
	struct gmem_vcpu *vcpu;
	struct gmem_transfer *transfer;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	int sockets[2];
	int memfd;
};

static void told(void *data, const struct gmem_region_info *region, uint64_t gpa, uint64_t size)
{
	(void)region;
	(void)gpa;
	(void)size;
	++*(int *)data;
}

static void make(struct things *things, struct gmem_vm *vm, uint64_t page, int *ret_told)
{
	GMEM_OPTS(gmem_listener_opts, tells, .data = ret_told, .region_added = told);
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	GMEM_OPTS(gmem_export_opts, skips, .flags = GMEM_EXPORT_SKIP);
	struct gmem_region *added;

	assert_ok(gmem_lease_new(vm, 0, page + 1, NULL, &things->lease));
	assert_ok(gmem_listener_new(vm, NULL, &things->listener));
	assert_ok(gmem_listener_new(vm, &tells, &things->with_layout));
	assert_ok(gmem_change_new(vm, &things->change));
	assert_ok(gmem_change_add(things->change, 64 * page, page, &opts, &added));
	assert_ok(gmem_populate_new(vm, 0, page, NULL, &things->job));
	assert_ok(gmem_vcpu_new(vm, -1, NULL, &things->vcpu));
	things->memfd = unit_memfd(2 * page, 0);
	assert_ok(gmem_vm_load_begin(vm, 0, things->memfd, 0, 2 * page, NULL, &things->transfer));
	assert_ok(gmem_export_new(vm, &skips, &things->exporter));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, things->sockets), 0);
	assert_ok(gmem_peer_add(things->exporter, things->sockets[0], NULL, &things->peer));
	assert_ok(gmem_export_dispatch(things->exporter));
}

static void check(const struct things *things, struct gmem_region *region)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_DEVICE);
	struct gmem_region *untouched = UNTOUCHED(struct gmem_region);
	struct gmem_peer *peer = UNTOUCHED(struct gmem_peer);
	struct gmem_vhost_user_region vhost[2];
	struct gmem_extent extents[2];
	struct kvm_run run = { .exit_reason = KVM_EXIT_MEMORY_FAULT };
	struct gmem_exit exit;
	struct gmem_transfer_result result = { .size = sizeof(result) };
	struct gmem_footprint footprint;
	int16_t events;
	int fds[2];

	assert_refused(-ESTALE, "was freed", gmem_change_add(things->change, 0, PAGE, &opts, &untouched));
	assert_refused(-ESTALE, "was freed", gmem_change_remove(things->change, region));
	assert_refused(-ESTALE, "was freed", gmem_change_move(things->change, region, 0));
	assert_refused(-ESTALE, "was freed", gmem_change_apply(things->change));
	assert_refused(-ESTALE, "was freed", gmem_populate_run(things->job));
	assert_refused(-ESTALE, "was freed",
		       gmem_vcpu_handle_exit(things->vcpu, &run, -1, EFAULT, &exit));
	assert_refused(-ESTALE, "was freed", gmem_vcpu_prefault(things->vcpu, 0, PAGE, NULL));
	assert_refused(-ESTALE, "was freed", gmem_transfer_step(things->transfer, 1));
	assert_refused(-ESTALE, "was freed", gmem_transfer_work(things->transfer));
	assert_refused(-ESTALE, "was freed", gmem_export_dispatch(things->exporter));
	assert_refused(-ESTALE, "was freed", gmem_export_table(things->exporter, extents, 2));
	assert_refused(-ESTALE, "was freed", gmem_export_vhost_user(things->exporter, vhost, fds, 2));
	assert_refused(-ESTALE, "was freed",
		       gmem_peer_add(things->exporter, things->sockets[0], NULL, &peer));
	assert_refused(-ESTALE, "was freed",
		       gmem_export_add_memory(things->exporter, fds, PAGE, things->memfd, 0));
	assert_refused(-ESTALE, "was freed", gmem_export_remove_memory(things->exporter, fds));
	assert_refused(-ESTALE, "was freed", gmem_peer_status(things->peer));
	assert_refused(-ESTALE, "was freed", gmem_peer_wait(things->peer, -1));
	/* What was done, and what to poll, is still told. */
	assert_true(gmem_export_fd(things->exporter) >= 0);
	assert_int_equal(gmem_populate_result(things->job, &footprint), 0);
	assert_int_equal(footprint.counted, 0);
	assert_int_equal(gmem_transfer_get_result(things->transfer, &result), 0);
	assert_true(gmem_transfer_fd(things->transfer, &events) >= 0);
}

static void free_all(struct things *things)
{
	gmem_peer_remove(things->peer);
	gmem_export_free(things->exporter);
	assert_ok(gmem_transfer_free(things->transfer));
	gmem_vcpu_free(things->vcpu);
	gmem_populate_free(things->job);
	gmem_change_free(things->change);
	gmem_listener_free(things->with_layout);
	gmem_listener_free(things->listener);
	gmem_lease_free(things->lease);
	close(things->sockets[0]);
	close(things->sockets[1]);
	close(things->memfd);
}

static void what_outlives_a_vm_is_stale_and_can_be_freed(void **state)
{
	struct gmem_region *region;
	struct things things;
	struct unit unit;
	int count;

	(void)state;
	for (size_t i = 0; i < 2 * UNIT_WAYS; i++) {
		count = 0;
		unit_begin_vm(&unit, unit_ways[i / 2].kernel);
		region = unit_region_backed(&unit, 0, 1, unit_ways[i / 2].backing);
		unit_region_backed(&unit, 1, 4, unit_ways[i / 2].backing);
		make(&things, unit.vm, unit.page, &count);
		assert_int_equal(count, 2);
		unit_free_vm(&unit, i % 2);
		check(&things, region);
		free_all(&things);
		assert_int_equal(count, 2);
		unit_end(&unit);
	}
}

static void what_goes_before_its_vm_leaves_nothing(void **state)
{
	struct things things;
	struct unit unit;
	int count;

	(void)state;
	for (size_t i = 0; i < UNIT_WAYS; i++) {
		count = 0;
		unit_begin_vm(&unit, unit_ways[i].kernel);
		unit_region_backed(&unit, 0, 1, unit_ways[i].backing);
		unit_region_backed(&unit, 1, 4, unit_ways[i].backing);
		make(&things, unit.vm, unit.page, &count);
		free_all(&things);
		unit_end(&unit);
	}
}

/* ---- calls that are under way at the VM's end ---- */

struct call {
	struct gmem_populate *job;
	struct gmem_transfer *transfer;
	sem_t begun, ended;
	int result;
};

static void wait_for(sem_t *sem)
{
	while (sem_wait(sem) < 0)
		;
}

static int tell_and_wait(void *data, uint64_t done, uint64_t total)
{
	struct call *call = data;

	(void)done;
	(void)total;
	sem_post(&call->begun);
	wait_for(&call->ended);
	sem_post(&call->ended);
	return 0;
}

static void *run_job(void *data)
{
	struct call *call = data;

	call->result = gmem_populate_run(call->job);
	return NULL;
}

static void *step(void *data)
{
	struct call *call = data;

	sem_post(&call->begun);
	call->result = gmem_transfer_step(call->transfer, 1);
	return NULL;
}

/* What a step waits for comes when the VM has ended. Returns what the call did. */
static int end_during(struct unit *unit, struct call *call, void *(*run)(void *), int writes, bool with_vm)
{
	static const char page[PAGE] = "late";
	pthread_t thread;

	sem_init(&call->begun, 0, 0);
	sem_init(&call->ended, 0, 0);
	assert_int_equal(pthread_create(&thread, NULL, run, call), 0);
	wait_for(&call->begun);
	usleep(10000);
	unit_free_vm(unit, with_vm);
	sem_post(&call->ended);
	assert_int_equal(write(writes, page, sizeof(page)), sizeof(page));
	assert_int_equal(pthread_join(thread, NULL), 0);
	return call->result;
}

static void calls_that_outlive_a_vm_keep_its_memory(void **state)
{
	struct call call = { 0 };
	GMEM_OPTS(gmem_populate_opts, opts, .progress = tell_and_wait, .progress_data = &call);
	struct unit unit;
	int ends[2], ret;

	(void)state;
	for (size_t i = 0; i < 4 * UNIT_WAYS; i++) {
		unit_begin_vm(&unit, unit_ways[i / 4].kernel);
		unit_region_backed(&unit, 0, 2, unit_ways[i / 4].backing);
		assert_int_equal(pipe(ends), 0);
		assert_ok(gmem_populate_new(unit.vm, 0, 2 * unit.page, &opts, &call.job));
		assert_ok(gmem_vm_load_begin(unit.vm, 0, ends[0], 0, PAGE, NULL, &call.transfer));
		ret = end_during(&unit, &call, i & 2 ? step : run_job, ends[1], i & 1);
		assert_true(ret == -ESTALE || ret >= 0);
		assert_refused(-ESTALE, "was freed", gmem_transfer_step(call.transfer, 0));
		assert_ok(gmem_transfer_free(call.transfer));
		gmem_populate_free(call.job);
		close(ends[0]);
		close(ends[1]);
		unit_end(&unit);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(what_outlives_a_vm_is_stale_and_can_be_freed),
	cmocka_unit_test(what_goes_before_its_vm_leaves_nothing),
	cmocka_unit_test(calls_that_outlive_a_vm_keep_its_memory),
};

UNIT_MAIN(tests)
