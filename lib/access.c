/* SPDX-License-Identifier: MIT */
/*
 * Access through a view: find the pieces of a guest range, and touch each in a
 * way that survives pages which cannot be reached (touch.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "internal.h"
#include "touch.h"

static int check_access(const struct gmem_view *view, uint64_t gpa, const void *buf, uint64_t size)
{
	if (!view)
		return gmem_fail(-EINVAL, "view is NULL");
	if (size && !buf)
		return gmem_fail(-EINVAL, "buf is NULL");
	if (size && gpa + size - 1 < gpa)
		return gmem_fail(-EINVAL, "gpa 0x%" PRIx64 " + size 0x%" PRIx64 " wraps around", gpa,
				 size);
	return 0;
}

static int fail_touch(uint64_t gpa, uint64_t done, uint64_t size, int err)
{
	return gmem_fail(err,
			 "gpa 0x%" PRIx64 " + 0x%" PRIx64 " cannot be reached: %s; 0x%" PRIx64
			 " bytes of 0x%" PRIx64 " were done",
			 gpa, done, gmem_errno_name(err), done, size);
}

/* ---- ranges: the same walk, with another touch at each piece ---- */

struct walk {
	struct gmem_view *view;
	uint64_t gpa;
	uint64_t size;
	/* touch the piece at @hva, @done bytes into the walk; bytes done there */
	size_t (*touch)(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err);
	void *buf;
	bool writes;
	uint8_t byte;
	int order;
	bool stop;		/* the touch has its answer */
};

static int walk_pieces(struct walk *walk, uint64_t *ret_done)
{
	struct iovec piece;
	uint64_t done = 0;
	int err = 0;

	while (done < walk->size && !walk->stop) {
		uint64_t rest = walk->size - done;
		size_t touched;

		if (gmem_table_hva(walk->view->table, walk->gpa + done, rest, &piece.iov_base))
			piece.iov_len = rest;
		else if (walk->writes)
			err = gmem_view_piece_to_write(walk->view, walk->gpa + done, rest, &piece);
		else
			err = gmem_view_piece(walk->view, walk->gpa + done, rest, &piece);
		if (err)
			break;

		touched = walk->touch(walk, done, piece.iov_base, piece.iov_len, &err);
		done += touched;
		if (err) {
			fail_touch(walk->gpa, done, walk->size, err);
			break;
		}
	}

	*ret_done = done;
	return err;
}

static int run(struct walk *walk, uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;

	err = check_access(walk->view, walk->gpa, walk->buf, walk->size);
	if (err)
		return err;

	gmem_view_begin(walk->view);
	err = walk_pieces(walk, &done);
	gmem_view_end(walk->view);
	if (ret_done)
		*ret_done = done;
	return err;
}

static size_t touch_read(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	return gmem_touch_copy(gmem_view_is_fast(walk->view), (char *)walk->buf + done, hva, size,
			       ret_err);
}

static size_t touch_write(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	return gmem_touch_copy(gmem_view_is_fast(walk->view), hva, (char *)walk->buf + done, size,
			       ret_err);
}

static size_t touch_fill(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	(void)done;
	return gmem_touch_fill(gmem_view_is_fast(walk->view), hva, walk->byte, size, ret_err);
}

static size_t touch_compare(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	size_t equal;

	equal = gmem_touch_compare(gmem_view_is_fast(walk->view), hva, (char *)walk->buf + done,
				   size, &walk->order, ret_err);
	walk->stop = equal < size;
	return equal;
}

static size_t touch_string(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	size_t length;

	length = gmem_touch_string(gmem_view_is_fast(walk->view), (char *)walk->buf + done, hva,
				   size, ret_err);
	walk->stop = length < size;
	return length;
}

static int read_in_pieces(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
			  uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size, .buf = buf,
			     .touch = touch_read };

	return run(&walk, ret_done);
}

static int write_in_pieces(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
			   uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size, .buf = buf,
			     .touch = touch_write, .writes = true };

	return run(&walk, ret_done);
}

/*
 * Most copies lie behind one entry and meet no page that is not there. They
 * take this path, which does nothing else; whatever it declines, it has not
 * counted, and the walk does from the start.
 */
static inline bool copy_at_once(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
				bool to_guest)
{
	struct gmem_touch_stop stop = { .fault = 1 };
	void *hva;

	if (!view || !buf || !size || !gmem_view_is_fast(view))
		return false;

	gmem_view_begin(view);
	if (gmem_table_hva(view->table, gpa, size, &hva))
		stop = to_guest ? gmem_touch_fast_copy(hva, buf, size)
				: gmem_touch_fast_copy(buf, hva, size);
	gmem_view_end(view);
	return !stop.fault;
}

GMEM_API int gmem_view_read(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
			    uint64_t *ret_done)
{
	if (!copy_at_once(view, gpa, buf, size, false))
		return read_in_pieces(view, gpa, buf, size, ret_done);

	if (ret_done)
		*ret_done = size;
	return 0;
}

GMEM_API int gmem_view_write(struct gmem_view *view, uint64_t gpa, const void *buf, uint64_t size,
			     uint64_t *ret_done)
{
	void *from = (void *)(uintptr_t)buf;

	if (!copy_at_once(view, gpa, from, size, true))
		return write_in_pieces(view, gpa, from, size, ret_done);

	if (ret_done)
		*ret_done = size;
	return 0;
}

GMEM_API int gmem_view_fill(struct gmem_view *view, uint64_t gpa, uint8_t byte, uint64_t size,
			    uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size, .buf = &walk, .byte = byte,
			     .touch = touch_fill, .writes = true };

	return run(&walk, ret_done);
}

GMEM_API int gmem_view_compare(struct gmem_view *view, uint64_t gpa, const void *buf,
			       uint64_t size, int *ret_order, uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size,
			     .buf = (void *)(uintptr_t)buf, .touch = touch_compare };
	int err;

	if (!ret_order)
		return gmem_fail(-EINVAL, "ret_order is NULL");

	err = run(&walk, ret_done);
	if (!err)
		*ret_order = walk.order;
	return err;
}

GMEM_API int gmem_view_string(struct gmem_view *view, uint64_t gpa, char *buf, uint64_t max,
			      uint64_t *ret_length)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = max, .buf = buf,
			     .touch = touch_string };
	uint64_t length;
	int err;

	if (!ret_length || max == 0)
		return gmem_fail(-EINVAL, "%s", ret_length ? "max is 0" : "ret_length is NULL");

	err = run(&walk, &length);
	if (err)
		return err;
	if (!walk.stop)
		return gmem_fail(-ENAMETOOLONG,
				 "no end of the string at gpa 0x%" PRIx64 " in 0x%" PRIx64 " bytes", gpa,
				 max);
	buf[length] = '\0';
	*ret_length = length;
	return 0;
}

/* Two ranges at once: in pieces in which both are in one piece */
static int copy_pieces(struct gmem_view *view, uint64_t to, uint64_t from, uint64_t size,
		       uint64_t *done)
{
	struct iovec source, target;
	int err = 0;

	while (*done < size) {
		err = gmem_view_piece(view, from + *done, size - *done, &source);
		if (!err)
			err = gmem_view_piece_to_write(view, to + *done, source.iov_len, &target);
		if (err)
			return err;

		*done += gmem_touch_copy(gmem_view_is_fast(view), target.iov_base, source.iov_base,
					 target.iov_len, &err);
		if (err)
			return fail_touch(to, *done, size, err);
	}
	return 0;
}

GMEM_API int gmem_view_copy(struct gmem_view *view, uint64_t to, uint64_t from, uint64_t size,
			    uint64_t *ret_done)
{
	uint64_t done = 0;
	int err;

	if (ret_done)
		*ret_done = 0;

	err = check_access(view, to, view, size);
	if (!err)
		err = check_access(view, from, view, size);
	if (err)
		return err;
	if (size && to <= from + (size - 1) && from <= to + (size - 1))
		return gmem_fail(-EINVAL,
				 "0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " and at 0x%" PRIx64 " overlap",
				 size, from, to);

	gmem_view_begin(view);
	err = copy_pieces(view, to, from, size, &done);
	gmem_view_end(view);
	if (ret_done)
		*ret_done = done;
	return err;
}

/* ---- single numbers ---- */

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
		int err = gmem_touch_load##bits(fast, hva, order, &value);            \
                                                                                      \
		if (!err)                                                             \
			*ret = value;                                                 \
		return err;                                                           \
	}

static int load(bool fast, const void *hva, uint32_t width, int order, uint64_t *ret)
{
	switch (width) {
		FOR_EACH_WIDTH(LOAD_CASE)
	}
	return -EINVAL;
}

#define STORE_CASE(bits)                                                              \
	case bits / 8:                                                                \
		return gmem_touch_store##bits(fast, hva, (uint##bits##_t)value, order);

static int store(bool fast, void *hva, uint32_t width, int order, uint64_t value)
{
	switch (width) {
		FOR_EACH_WIDTH(STORE_CASE)
	}
	return -EINVAL;
}

#define EXCHANGE_CASE(bits)                                                           \
	case bits / 8: {                                                              \
		uint##bits##_t old = (uint##bits##_t)*expected;                       \
		int err = gmem_touch_cmpxchg##bits(fast, hva, &old,                   \
						   (uint##bits##_t)desired, order,    \
						   ret_swapped);                      \
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

static int hva_to_write(const struct gmem_view *view, uint64_t gpa, uint32_t width, void **ret)
{
	struct iovec piece;
	int err;

	if (gmem_table_hva(view->table, gpa, width, ret))
		return 0;

	/* Aligned as it is, it lies in one page. */
	err = gmem_view_piece_to_write(view, gpa, width, &piece);
	if (!err)
		*ret = piece.iov_base;
	return err;
}

GMEM_API int gmem_view_load(struct gmem_view *view, uint64_t gpa, uint32_t width, uint32_t order,
			    uint64_t *ret)
{
	const uint32_t orders = 1u << GMEM_RELAXED | 1u << GMEM_ACQUIRE | 1u << GMEM_SEQ_CST;
	void *hva;
	int err;

	if (!ret)
		return gmem_fail(-EINVAL, "ret is NULL");
	err = check_number(view, gpa, width, order, orders);
	if (err)
		return err;

	gmem_view_begin(view);
	err = gmem_view_hva(view, gpa, width, &hva);
	if (!err) {
		err = load(gmem_view_is_fast(view), hva, width, atomic_orders[order], ret);
		if (err)
			fail_touch(gpa, 0, width, err);
	}
	gmem_view_end(view);
	return err;
}

GMEM_API int gmem_view_store(struct gmem_view *view, uint64_t gpa, uint32_t width, uint32_t order,
			     uint64_t value)
{
	const uint32_t orders = 1u << GMEM_RELAXED | 1u << GMEM_RELEASE | 1u << GMEM_SEQ_CST;
	void *hva;
	int err;

	err = check_number(view, gpa, width, order, orders);
	if (!err)
		err = check_fits(value, width);
	if (err)
		return err;

	gmem_view_begin(view);
	err = hva_to_write(view, gpa, width, &hva);
	if (!err) {
		err = store(gmem_view_is_fast(view), hva, width, atomic_orders[order], value);
		if (err)
			fail_touch(gpa, 0, width, err);
	}
	gmem_view_end(view);
	return err;
}

GMEM_API int gmem_view_exchange(struct gmem_view *view, uint64_t gpa, uint32_t width,
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
	err = hva_to_write(view, gpa, width, &hva);
	if (!err) {
		err = exchange(gmem_view_is_fast(view), hva, width, atomic_orders[order],
			       expected, desired, &swapped);
		if (err)
			fail_touch(gpa, 0, width, err);
	}
	gmem_view_end(view);
	return err ? err : swapped;
}
