/* SPDX-License-Identifier: MIT */
/* peer_recall: peers lose memory that becomes private, and get it back once it is shared */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"
#include "unit_alloc.h"
#include "unit_share.h"

#define PAGE	((uint64_t)4096)
#define PAGES_OF_IT 1024
#define SIZE	(PAGES_OF_IT * PAGE)
#define PATIENT	60000

/* A VM with 4 MiB from a memfd at 0, which can be converted, and somebody who has it */
struct scene {
	struct unit unit;
	struct gmem_plan *plan;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_import *import;
	struct gmem_view *view;
	struct gmem_region *region;
	char *hva;
	int memfd;
	int sockets[2];
	struct unit_answerer answerer;
};

static void add_region(struct scene *s)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = s->plan, .flags = GMEM_REGION_HVA, .hva = s->hva);

	assert_ok(gmem_region_add(s->unit.vm, 0, SIZE, &opts, &s->region));
}

static void scene_begin(struct scene *s, uint64_t peer_flags, uint32_t wait_ms)
{
	GMEM_OPTS(gmem_peer_opts, opts, .flags = peer_flags, .wait_ms = wait_ms);

	memset(s, 0, sizeof(*s));
	unit_begin_vm(&s->unit, "7.3-swp-t1");
	s->plan = unit_plan(&s->unit, GMEM_BACKING_PRIVATE);
	s->memfd = unit_memfd(SIZE, UNIT_SEALED);
	s->hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	assert_ptr_not_equal(s->hva, MAP_FAILED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s->sockets), 0);
	add_region(s);
	/* private before there was an export */
	assert_ok(gmem_vm_convert(s->unit.vm, 8 * PAGE, 8 * PAGE, GMEM_STATE_PRIVATE, NULL, NULL));
	assert_ok(gmem_export_new(s->unit.vm, NULL, &s->exporter));
	assert_ok(gmem_export_add_memory(s->exporter, s->hva, SIZE, s->memfd, 0));
	assert_ok(gmem_peer_add(s->exporter, s->sockets[0], &opts, &s->peer));
	assert_ok(gmem_import_new(s->sockets[1], NULL, &s->import));
	assert_ok(gmem_import_view_new(s->import, &s->view));
}

static void scene_end(struct scene *s)
{
	gmem_view_free(s->view);
	gmem_import_free(s->import);
	gmem_export_free(s->exporter);
	gmem_vm_free(s->unit.vm);
	s->unit.vm = NULL;
	gmem_plan_free(s->plan);
	munmap(s->hva, SIZE);
	close(s->memfd);
	close(s->sockets[0]);
	close(s->sockets[1]);
	unit_end(&s->unit);
}

static void exchange(struct scene *s)
{
	unit_exchange(s->exporter, s->peer, s->import);
}

static void start_answering(struct scene *s)
{
	unit_start_answering(&s->answerer, s->import);
}

static void stop_answering(struct scene *s)
{
	unit_stop_answering(&s->answerer);
}

static int convert(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	return gmem_vm_convert(s->unit.vm, page * PAGE, pages * PAGE, state, NULL, NULL);
}

static int convert_answered(struct scene *s, uint64_t page, uint64_t pages, uint32_t state)
{
	int err;

	start_answering(s);
	err = convert(s, page, pages, state);
	stop_answering(s);
	return err;
}

/* The importing side loads from the page: 0 or -EACCES; any other result is wrong. */
static int look(const struct scene *s, uint64_t page)
{
	uint64_t value = 0;
	int err = gmem_view_load(s->view, page * PAGE + 8, 8, GMEM_RELAXED, &value);

	if (err && err != -EACCES)
		fail_msg("page %llu: %d, %s", (unsigned long long)page, err, gmem_last_error());
	return err;
}

/* Fails unless the importing side can read exactly the shared pages. */
static void compare(struct scene *s)
{
	struct gmem_state_range range;

	for (uint64_t page = 0; page < PAGES_OF_IT; page++) {
		assert_int_equal(gmem_vm_state(s->unit.vm, page * PAGE, PAGE, &range, 1), 1);
		assert_int_equal(look(s, page), range.state == GMEM_STATE_PRIVATE ? -EACCES : 0);
	}
}

static void private_memory_is_never_given(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	exchange(&s);
	compare(&s);
	assert_int_equal(look(&s, 7), 0);
	assert_int_equal(look(&s, 8), -EACCES);
	assert_int_equal(look(&s, 15), -EACCES);
	assert_int_equal(look(&s, 16), 0);
	scene_end(&s);
}

static void conversions_take_back_and_give_again(void **state)
{
	uint64_t value = 5;
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	exchange(&s);
	assert_ok(convert_answered(&s, 100, 20, GMEM_STATE_PRIVATE));
	assert_int_equal(look(&s, 100), -EACCES);
	compare(&s);
	assert_ok(convert(&s, 105, 2, GMEM_STATE_SHARED));
	exchange(&s);
	compare(&s);
	assert_ok(gmem_view_write(s.view, 105 * PAGE, &value, sizeof(value), NULL));
	assert_memory_equal(s.hva + 105 * PAGE, &value, sizeof(value));

	/* over what is private in parts */
	assert_ok(convert_answered(&s, 0, PAGES_OF_IT, GMEM_STATE_PRIVATE));
	compare(&s);
	assert_ok(convert(&s, 0, PAGES_OF_IT, GMEM_STATE_SHARED));
	exchange(&s);
	compare(&s);
	scene_end(&s);
}

/* Memory that is given again is contiguous with its neighbours, as before. */
static void memory_given_again_is_where_it_was(void **state)
{
	struct iovec before, after;
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	assert_ok(convert(&s, 0, PAGES_OF_IT, GMEM_STATE_SHARED));
	exchange(&s);
	gmem_view_begin(s.view);
	assert_int_equal(gmem_view_iovec(s.view, 0, SIZE, &before, 1), 1);
	gmem_view_end(s.view);
	assert_ok(convert_answered(&s, 3, 600, GMEM_STATE_PRIVATE));
	assert_ok(convert(&s, 3, 600, GMEM_STATE_SHARED));
	exchange(&s);
	gmem_view_begin(s.view);
	assert_int_equal(gmem_view_iovec(s.view, 0, SIZE, &after, 1), 1);
	gmem_view_end(s.view);
	assert_ptr_equal(before.iov_base, after.iov_base);
	scene_end(&s);
}

static void without_an_answer_nothing_becomes_private(void **state)
{
	struct gmem_state_range range;
	struct scene s;

	(void)state;
	scene_begin(&s, 0, 1);
	exchange(&s);
	assert_refused(-ETIMEDOUT, "refuses that gpa 0x64000", convert(&s, 100, 4, GMEM_STATE_PRIVATE));
	assert_int_equal(gmem_vm_state(s.unit.vm, 100 * PAGE, PAGE, &range, 1), 1);
	assert_int_equal(range.state, GMEM_STATE_SHARED);
	/* The peer lets go late, and is given the memory again. */
	exchange(&s);
	compare(&s);
	assert_int_equal(look(&s, 100), 0);
	scene_end(&s);
}

static void without_an_answer_a_peer_is_cut_off(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, GMEM_PEER_CUT_OFF, 1);
	exchange(&s);
	assert_ok(convert(&s, 100, 4, GMEM_STATE_PRIVATE));
	assert_int_equal(gmem_peer_status(s.peer), -ETIMEDOUT);
	while (gmem_import_dispatch(s.import) >= 0)
		;
	assert_int_equal(look(&s, 100), -EACCES);
	scene_end(&s);
}

/* The other process cannot unmap: the conversion fails, and so it says. */
static void a_refusal_to_let_go_is_passed_on(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	exchange(&s);
	fake_fail_next(FAKE_MPROTECT, -ENOMEM);
	assert_int_equal(convert_answered(&s, 100, 4, GMEM_STATE_PRIVATE), -ENOMEM);
	assert_true(fake_fail_struck());
	exchange(&s);
	assert_ok(convert_answered(&s, 100, 4, GMEM_STATE_PRIVATE));
	compare(&s);
	scene_end(&s);
}

static void a_removed_region_is_shared_when_it_comes_back(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	exchange(&s);
	start_answering(&s);
	assert_ok(gmem_region_remove(s.region));
	stop_answering(&s);
	add_region(&s);
	exchange(&s);
	compare(&s);
	assert_int_equal(look(&s, 8), 0);
	scene_end(&s);
}

/* A kernel that refuses in the middle: what was taken back is given again. */
static void a_conversion_that_fails_is_undone_for_peers(void **state)
{
	struct scene s;

	(void)state;
	scene_begin(&s, 0, PATIENT);
	exchange(&s);
	fake_fail_next(FAKE_SET_ATTRIBUTES, -ENOMEM);
	assert_int_equal(convert_answered(&s, 100, 4, GMEM_STATE_PRIVATE), -ENOMEM);
	exchange(&s);
	compare(&s);
	assert_int_equal(look(&s, 100), 0);
	scene_end(&s);
}

static void failed_allocations_are_survived(void **state)
{
	bool struck = true;

	(void)state;
	for (unsigned n = 1; struck; n++) {
		struct scene s;

		scene_begin(&s, GMEM_PEER_CUT_OFF, 50);
		unit_fail_alloc(n);
		for (int i = 0; i < 8; i++) {
			gmem_export_dispatch(s.exporter);
			gmem_import_dispatch(s.import);
		}
		gmem_export_dispatch(s.exporter);
		struck = unit_alloc_struck();
		/* nothing it could not have before */
		assert_int_not_equal(gmem_view_load(s.view, 8 * PAGE, 8, 0, &(uint64_t){ 0 }), 0);
		scene_end(&s);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(private_memory_is_never_given),
	cmocka_unit_test(conversions_take_back_and_give_again),
	cmocka_unit_test(memory_given_again_is_where_it_was),
	cmocka_unit_test(without_an_answer_nothing_becomes_private),
	cmocka_unit_test(without_an_answer_a_peer_is_cut_off),
	cmocka_unit_test(a_refusal_to_let_go_is_passed_on),
	cmocka_unit_test(a_removed_region_is_shared_when_it_comes_back),
	cmocka_unit_test(a_conversion_that_fails_is_undone_for_peers),
	cmocka_unit_test(failed_allocations_are_survived),
};

UNIT_MAIN(tests)
