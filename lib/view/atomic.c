/* SPDX-License-Identifier: MIT */
#include "view/atomic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "base/error.h"
#include "nofault/nofault.h"
#include "region/dirty_pages.h"
#include "view/access.h"
#include "view/lookup_table.h"
#include "view/view.h"

static int check_number(const struct gmem_view *view, uint64_t gpa, uint32_t width,
			uint32_t order, uint32_t orders)
{
	if (!view)
		return gmem_fail(-EINVAL, "view is NULL");
	if (width != 1 && width != 2 && width != 4 && width != 8)
		return gmem_fail(-EINVAL, "width %" PRIu32 " is not 1, 2, 4 or 8", width);
	if (gpa % width)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " is not a multiple of the width, %" PRIu32,
				 gpa, width);
	if (order > GMEM_SEQ_CST || !(orders & 1u << order))
		return gmem_fail(-EINVAL, "order %" PRIu32 " is not one for this access", order);
	return 0;
}

static int check_fits(uint64_t value, uint32_t width)
{
	if (width < 8 && value >> (8 * width))
		return gmem_fail(-EINVAL, "0x%" PRIx64 " does not fit %" PRIu32 " bytes", value, width);
	return 0;
}

static const int atomic_orders[] = {
	[GMEM_RELAXED] = __ATOMIC_RELAXED,
	[GMEM_ACQUIRE] = __ATOMIC_ACQUIRE,
	[GMEM_RELEASE] = __ATOMIC_RELEASE,
	[GMEM_SEQ_CST] = __ATOMIC_SEQ_CST,
};

#define FOR_EACH_WIDTH(define) define(8) define(16) define(32) define(64)

#define LOAD_CASE(bits)                                                               \
	case bits / 8: {                                                              \
		uint##bits##_t value = 0;                                             \
		int err = gmem_nofault_load##bits(fast, hva, order, &value);          \
                                                                                      \
		if (!err)                                                             \
			*ret = value;                                                 \
		return err;                                                           \
	}

static inline __attribute__((always_inline)) int load(bool fast, const void *hva, uint32_t width,
						      int order, uint64_t *ret)
{
	switch (width) {
		FOR_EACH_WIDTH(LOAD_CASE)
	}
	return -EINVAL;
}

#define STORE_CASE(bits)                                                              \
	case bits / 8:                                                                \
		if ((uint##bits##_t)value != value)                                   \
			return -EINVAL;                                               \
		return gmem_nofault_store##bits(fast, hva, (uint##bits##_t)value, order);

static inline __attribute__((always_inline)) int store(bool fast, void *hva, uint32_t width,
						       int order, uint64_t value)
{
	switch (width) {
		FOR_EACH_WIDTH(STORE_CASE)
	}
	return -EINVAL;
}

#define EXCHANGE_CASE(bits)                                                           \
	case bits / 8: {                                                              \
		uint##bits##_t old = (uint##bits##_t)*expected;                       \
		int err = gmem_nofault_cmpxchg##bits(fast, hva, &old,                 \
						     (uint##bits##_t)desired, order,  \
						     ret_swapped);                    \
                                                                                      \
		if (!err)                                                             \
			*expected = old;                                              \
		return err;                                                           \
	}

static int exchange(bool fast, void *hva, uint32_t width, int order, uint64_t *expected,
		    uint64_t desired, int *ret_swapped)
{
	switch (width) {
		FOR_EACH_WIDTH(EXCHANGE_CASE)
	}
	return -EINVAL;
}

static int fail(uint64_t gpa, uint32_t width, const void *hva, bool writes, int err)
{
	const struct gmem_access_failure failure = {
		.gpa = gpa, .size = width, .hva = hva, .writes = writes, .err = err,
	};

	return gmem_access_fail(&failure);
}

#define LOAD_ORDERS  (1u << GMEM_RELAXED | 1u << GMEM_ACQUIRE | 1u << GMEM_SEQ_CST)
#define STORE_ORDERS (1u << GMEM_RELAXED | 1u << GMEM_RELEASE | 1u << GMEM_SEQ_CST)

/*
 * Most accesses have arguments that fit, and find their number in one entry of the lookup
 * table. The functions "at once" do these. Whatever they do not do, or what fails, is done
 * by the others from the start. Widths that do not exist, and values that do not fit, are
 * found by load() and store().
 */
static inline bool is_plain(const struct gmem_view *view, uint64_t gpa, uint32_t width)
{
	return view && !(gpa & (width - 1));
}

static inline __attribute__((always_inline)) bool
load_by_table(const struct gmem_table *table, uint64_t gpa, uint32_t width, uint32_t order,
	      uint64_t *ret)
{
	void *hva;

	return __builtin_expect(gmem_table_hva(table, gpa, width, &hva), 1) &&
	       load(true, hva, width, atomic_orders[order], ret) == 0;
}

/* Each case has code of its own: see access.c on registers. */
static inline bool load_at_once(struct gmem_view *view, uint64_t gpa, uint32_t width,
				uint32_t order, uint64_t *ret)
{
	const struct gmem_table *table;
	bool is_done;

	if (gmem_view_is_begun(view))
		return view->table && load_by_table(view->table, gpa, width, order, ret);

	table = gmem_view_enter(view);
	is_done = load_by_table(table, gpa, width, order, ret);
	gmem_view_leave(view);
	return is_done;
}

static inline __attribute__((always_inline)) bool
store_by_table(const struct gmem_table *table, uint64_t gpa, uint32_t width, uint32_t order,
	       uint64_t value)
{
	const int atomic_order = order == GMEM_RELEASE ? __ATOMIC_RELEASE : __ATOMIC_RELAXED;
	void *hva;

	return __builtin_expect(gmem_table_hva(table, gpa, width, &hva), 1) &&
	       store(true, hva, width, atomic_order, value) == 0;
}

static __attribute__((noinline)) int load_checked(struct gmem_view *view, uint64_t gpa,
						  uint32_t width, uint32_t order, uint64_t *ret)
{
	const void *hva;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "ret is NULL");
	err = check_number(view, gpa, width, order, LOAD_ORDERS);
	if (err)
		return err;

	/* A word that is aligned lies in one page, so it is contiguous. */
	gmem_view_begin(view);
	err = gmem_view_hva_read(view, gpa, width, &hva);
	if (!err) {
		err = load(gmem_view_is_fast(view), hva, width, atomic_orders[order], ret);
		if (err)
			fail(gpa, width, hva, false, err);
	}
	gmem_view_end(view);
	return err;
}

static __attribute__((noinline)) int store_checked(struct gmem_view *view, uint64_t gpa,
						   uint32_t width, uint32_t order, uint64_t value)
{
	void *hva;
	int err;

	err = check_number(view, gpa, width, order, STORE_ORDERS);
	if (!err)
		err = check_fits(value, width);
	if (err)
		return err;

	gmem_view_begin(view);
	err = gmem_view_hva(view, gpa, width, &hva);
	if (!err) {
		err = store(gmem_view_is_fast(view), hva, width, atomic_orders[order], value);
		if (err)
			fail(gpa, width, hva, true, err);
		else
			gmem_view_wrote_word(view, gpa, width);
	}
	gmem_view_end(view);
	return err;
}

/* The same with a mark. Stored is stored: not twice, whatever the guest did in between. */
static __attribute__((noinline)) int finish_begun(struct gmem_view *view, uint64_t gpa, uint32_t width)
{
	gmem_view_mark(view, gpa, width);
	return 0;
}

static __attribute__((noinline)) int finish_entered(struct gmem_view *view, uint64_t gpa, uint32_t width)
{
	gmem_view_mark(view, gpa, width);
	gmem_view_leave(view);
	return 0;
}

static inline bool is_marked(const struct gmem_view *view, uint64_t gpa)
{
	const struct gmem_dirty_pages *marks = gmem_view_marks(view);

	return gmem_view_marks_are_here(marks) && gmem_dirty_page_is_marked(marks, gpa);
}

static __attribute__((noinline)) int store_marked_begun(struct gmem_view *view, uint64_t gpa,
							uint32_t width, uint32_t order, uint64_t value)
{
	if (!gmem_view_is_fast(view) || !store_by_table(view->table, gpa, width, order, value))
		return store_checked(view, gpa, width, order, value);
	if (__builtin_expect(!is_marked(view, gpa), 0))
		return finish_begun(view, gpa, width);
	return 0;
}

static __attribute__((noinline)) int store_marked_entered(struct gmem_view *view, uint64_t gpa,
							  uint32_t width, uint32_t order, uint64_t value,
							  const struct gmem_table *table)
{
	if (!gmem_view_is_fast(view) || !store_by_table(table, gpa, width, order, value)) {
		gmem_view_leave(view);
		return store_checked(view, gpa, width, order, value);
	}
	if (__builtin_expect(!is_marked(view, gpa), 0))
		return finish_entered(view, gpa, width);
	gmem_view_leave(view);
	return 0;
}

static inline __attribute__((always_inline)) int
store_at_once(struct gmem_view *view, uint64_t gpa, uint32_t width, uint32_t order, uint64_t value)
{
	const struct gmem_table *table;
	bool is_done;

	if (gmem_view_is_begun(view)) {
		if (__builtin_expect(gmem_view_marks(view) && view->table, 0))
			return store_marked_begun(view, gpa, width, order, value);
		is_done = view->table && store_by_table(view->table, gpa, width, order, value);
	} else {
		table = gmem_view_enter(view);
		if (__builtin_expect(gmem_view_marks(view) != NULL, 0))
			return store_marked_entered(view, gpa, width, order, value, table);
		is_done = store_by_table(table, gpa, width, order, value);
		gmem_view_leave(view);
	}
	return __builtin_expect(is_done, 1) ? 0 : store_checked(view, gpa, width, order, value);
}

GMEM_API int gmem_view_load(struct gmem_view *view, uint64_t gpa, uint32_t width, uint32_t order,
			    uint64_t *ret)
{
	if (__builtin_expect(ret && is_plain(view, gpa, width) && gmem_view_is_fast(view), 1) &&
	    __builtin_expect(order <= GMEM_SEQ_CST && LOAD_ORDERS >> order & 1, 1) &&
	    __builtin_expect(load_at_once(view, gpa, width, order, ret), 1))
		return 0;
	return load_checked(view, gpa, width, order, ret);
}

GMEM_API int gmem_view_store(struct gmem_view *view, uint64_t gpa, uint32_t width, uint32_t order,
			     uint64_t value)
{
	/* One that is sequentially consistent takes long in any case. */
	if (__builtin_expect(is_plain(view, gpa, width), 1) &&
	    __builtin_expect(order == GMEM_RELEASE || order == GMEM_RELAXED, 1))
		return store_at_once(view, gpa, width, order, value);
	return store_checked(view, gpa, width, order, value);
}

GMEM_API int gmem_view_compare_exchange(struct gmem_view *view, uint64_t gpa, uint32_t width,
					uint32_t order, uint64_t *expected, uint64_t desired)
{
	int swapped = 0;
	void *hva;
	int err;

	if (!expected)
		return gmem_fail(-EINVAL, "expected is NULL");
	err = check_number(view, gpa, width, order, UINT32_MAX);
	if (!err)
		err = check_fits(*expected, width);
	if (!err)
		err = check_fits(desired, width);
	if (err)
		return err;

	gmem_view_begin(view);
	err = gmem_view_hva(view, gpa, width, &hva);
	if (!err) {
		err = exchange(gmem_view_is_fast(view), hva, width, atomic_orders[order],
			       expected, desired, &swapped);
		if (err)
			fail(gpa, width, hva, true, err);
		else if (swapped)
			gmem_view_wrote_word(view, gpa, width);
	}
	gmem_view_end(view);
	return err ? err : swapped;
}
