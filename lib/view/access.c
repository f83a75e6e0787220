/* SPDX-License-Identifier: MIT */
#include "view/access.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "gmem.h"
#include "base/error.h"
#include "nofault/nofault.h"
#include "nofault/small_copy.h"
#include "region/dirty_pages.h"
#include "view/lookup_table.h"
#include "view/view.h"

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

/* If the guest's side can be reached after all, it was the caller's buffer. */
int gmem_access_fail(const struct gmem_access_failure *failure)
{
	const char *why = gmem_nofault_why(failure->hva, failure->writes, failure->err);
	const char *verb = failure->writes ? "written" : "read";

	if (!why)
		why = failure->writes ? "but the guest's page can be written now: it came meanwhile, or your "
					"buffer cannot be read" :
					"but the guest's page can be read now: it came meanwhile, or your "
					"buffer cannot be written";
	return gmem_fail(failure->err,
			 "gpa 0x%" PRIx64 " + 0x%" PRIx64 ", hva 0x%" PRIxPTR ", cannot be %s: %s, %s; "
			 "0x%" PRIx64 " bytes of 0x%" PRIx64 " were done",
			 failure->gpa, failure->done, (uintptr_t)failure->hva, verb,
			 gmem_errno_name(failure->err), why, failure->done, failure->size);
}

/*
 * ---- ranges ----
 *
 * A walk goes through the contiguous parts of a guest range, and calls an access function
 * for each.
 */

struct walk {
	struct gmem_view *view;
	uint64_t gpa;
	uint64_t size;
	/* accesses the part at @hva, @done bytes into the walk; returns the bytes done there */
	size_t (*access)(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err);
	void *buf;
	bool writes;
	uint8_t byte;
	int order;
	bool stop;		/* the access function found what it looks for */
};

/*
 * Long accesses begin anew at each multiple of this: who converts or changes the layout waits
 * for those that have begun.
 */
#define SPAN (UINT64_C(2) << 20)

/* Where, @done bytes into an access of @size bytes at @gpa, it begins anew or ends */
static uint64_t end_span(uint64_t gpa, uint64_t done, uint64_t size)
{
	uint64_t left = SPAN - (gpa + done) % SPAN;

	return size - done < left ? size : done + left;
}

static int fail_part(const struct walk *walk, uint64_t done, const void *hva, int err)
{
	const struct gmem_access_failure failure = {
		.gpa = walk->gpa, .done = done, .size = walk->size,
		.hva = hva, .writes = walk->writes, .err = err,
	};

	return gmem_access_fail(&failure);
}

static int walk_parts(struct walk *walk, uint64_t end, uint64_t *ret_done)
{
	uint64_t done = *ret_done, rest, now;
	struct iovec part;
	int err = 0;

	while (done < end && !walk->stop) {
		rest = end - done;
		if (gmem_table_hva(walk->view->table, walk->gpa + done, rest, &part.iov_base))
			part.iov_len = rest;
		else if (walk->writes)
			err = gmem_view_contiguous_to_write(walk->view, walk->gpa + done, rest, &part);
		else
			err = gmem_view_contiguous(walk->view, walk->gpa + done, rest, &part);
		if (err)
			break;

		now = walk->access(walk, done, part.iov_base, part.iov_len, &err);
		/* Past what is counted a failed write may have stored something, too. */
		if (walk->writes)
			gmem_view_wrote(walk->view, walk->gpa + done, part.iov_len);
		done += now;
		if (err) {
			fail_part(walk, done, (char *)part.iov_base + now, err);
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

	do {
		gmem_view_begin(walk->view);
		err = walk_parts(walk, end_span(walk->gpa, done, walk->size), &done);
		gmem_view_end(walk->view);
	} while (!err && done < walk->size && !walk->stop);
	if (ret_done)
		*ret_done = done;
	return err;
}

static size_t read_part(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	return gmem_nofault_copy(gmem_view_is_fast(walk->view), (char *)walk->buf + done, hva, size,
				 ret_err);
}

static size_t write_part(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	return gmem_nofault_copy(gmem_view_is_fast(walk->view), hva, (char *)walk->buf + done, size,
				 ret_err);
}

static size_t fill_part(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	(void)done;
	return gmem_nofault_fill(gmem_view_is_fast(walk->view), hva, walk->byte, size, ret_err);
}

static size_t compare_part(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	size_t equal;

	equal = gmem_nofault_compare(gmem_view_is_fast(walk->view), hva, (char *)walk->buf + done,
				     size, &walk->order, ret_err);
	walk->stop = equal < size;
	return equal;
}

static size_t string_part(struct walk *walk, uint64_t done, void *hva, size_t size, int *ret_err)
{
	size_t length;

	length = gmem_nofault_string(gmem_view_is_fast(walk->view), (char *)walk->buf + done, hva,
				     size, ret_err);
	walk->stop = length < size;
	return length;
}

/* Out of line, as everything is that a small copy without a fault does not need */
static __attribute__((noinline)) int copy_in_parts(struct gmem_view *view, uint64_t gpa, void *buf,
						   uint64_t size, uint64_t *ret_done, bool to_guest)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size, .buf = buf,
			     .access = to_guest ? write_part : read_part, .writes = to_guest };

	return run(&walk, ret_done);
}

/*
 * Most copies lie in one entry of the lookup table, and every page can be reached. What
 * follows does these and no others: otherwise the walk does the copy from the start, and
 * counts. It leaves it to the walk, too, to find out whether @buf is NULL.
 *
 * Small copies save no register: one that is restored is loaded after the store to guest
 * memory, whose address comes late. If the processor takes the two for the same memory
 * because their last 12 bits are alike, the caller's next access waits for this one.
 */
static inline __attribute__((always_inline)) bool
copy_by_table(const struct gmem_table *table, uint64_t gpa, void *buf, uint64_t size, bool to_guest)
{
	void *hva, *dst, *src;

	if (__builtin_expect(!gmem_table_hva(table, gpa, size, &hva), 0))
		return false;

	src = to_guest ? buf : hva;
	dst = to_guest ? hva : buf;
	return size <= GMEM_SMALL_COPY ? gmem_small_copy(dst, src, size)
				       : !gmem_nofault_fast_copy(dst, src, size).fault;
}

/* ---- the same with marks, for writes ---- */

static inline __attribute__((always_inline)) void leave_if(bool leaves, struct gmem_view *view)
{
	if (leaves)
		gmem_view_leave(view);
}

/* The page is not known to be marked, or the copy failed, and may have stored something. */
static inline __attribute__((always_inline)) int
finish_write(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size, uint64_t *ret_done,
	     bool is_done, bool leaves)
{
	gmem_view_mark(view, gpa, size);
	leave_if(leaves, view);
	if (!is_done)
		return copy_in_parts(view, gpa, buf, size, ret_done, true);
	if (ret_done)
		*ret_done = size;
	return 0;
}

static __attribute__((noinline)) int finish_begun(struct gmem_view *view, uint64_t gpa, void *buf,
						  uint64_t size, uint64_t *ret_done, bool is_done)
{
	return finish_write(view, gpa, buf, size, ret_done, is_done, false);
}

static __attribute__((noinline)) int finish_entered(struct gmem_view *view, uint64_t gpa, void *buf,
						    uint64_t size, uint64_t *ret_done, bool is_done)
{
	return finish_write(view, gpa, buf, size, ret_done, is_done, true);
}

/*
 * The whole of a small write is in one page. It saves no register, see above: what follows the
 * copy begins anew with the gpa.
 */
static inline __attribute__((always_inline)) bool
find_to_mark(const struct gmem_view *view, const struct gmem_table *table, uint64_t gpa, uint64_t size,
	     void **ret)
{
	if (__builtin_expect(!gmem_view_is_fast(view), 0))
		return false;
	if (size > GMEM_SMALL_COPY)
		return gmem_table_hva(table, gpa, size, ret);
	return size - 1 <= (~gpa & (GMEM_NOFAULT_GRAIN - 1)) && gmem_table_hva(table, gpa, 1, ret);
}

static inline __attribute__((always_inline)) bool
are_marked(const struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	const struct gmem_dirty_pages *marks;

	if (size <= GMEM_SMALL_COPY)
		__asm__("" : "+r"(gpa));
	marks = gmem_view_marks(view);
	if (__builtin_expect(!gmem_view_marks_are_here(marks), 0))
		return false;
	return size <= GMEM_SMALL_COPY ? gmem_dirty_page_is_marked(marks, gpa)
				       : gmem_view_has_marked(marks, gpa, size);
}

static inline __attribute__((always_inline)) int
write_and_mark(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size, uint64_t *ret_done,
	       const struct gmem_table *table, bool leaves)
{
	void *hva;

	if (__builtin_expect(!find_to_mark(view, table, gpa, size, &hva), 0)) {
		leave_if(leaves, view);
		return copy_in_parts(view, gpa, buf, size, ret_done, true);
	}

	if (__builtin_expect(size <= GMEM_SMALL_COPY ? !gmem_small_copy(hva, buf, size)
						     : gmem_nofault_fast_copy(hva, buf, size).fault != 0, 0))
		return leaves ? finish_entered(view, gpa, buf, size, ret_done, false)
			      : finish_begun(view, gpa, buf, size, ret_done, false);
	if (__builtin_expect(!are_marked(view, gpa, size), 0))
		return leaves ? finish_entered(view, gpa, buf, size, ret_done, true)
			      : finish_begun(view, gpa, buf, size, ret_done, true);
	leave_if(leaves, view);
	if (ret_done)
		*ret_done = size;
	return 0;
}

#define DEFINE_WRITE(name, is_small, leaves)                                          \
static __attribute__((noinline)) int name(struct gmem_view *view, uint64_t gpa, void *buf, \
					  uint64_t size, uint64_t *ret_done,          \
					  const struct gmem_table *table)             \
{                                                                                     \
	if ((size <= GMEM_SMALL_COPY) != is_small)                                    \
		__builtin_unreachable();                                              \
	return write_and_mark(view, gpa, buf, size, ret_done, table, leaves);         \
}

DEFINE_WRITE(write_small_begun, true, false)
DEFINE_WRITE(write_small_entered, true, true)
DEFINE_WRITE(write_large_begun, false, false)
DEFINE_WRITE(write_large_entered, false, true)

/* Each case has code of its own: one for both needs a register more than there are. */
static inline __attribute__((always_inline)) int
copy(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size, uint64_t *ret_done,
     bool to_guest)
{
	const struct gmem_table *table;
	bool is_done;

	if (gmem_view_is_begun(view)) {
		if (to_guest && __builtin_expect(gmem_view_marks(view) && view->table, 0))
			return size <= GMEM_SMALL_COPY
				       ? write_small_begun(view, gpa, buf, size, ret_done, view->table)
				       : write_large_begun(view, gpa, buf, size, ret_done, view->table);
		is_done = view->table && copy_by_table(view->table, gpa, buf, size, to_guest);
	} else {
		table = gmem_view_enter(view);
		if (to_guest && __builtin_expect(gmem_view_marks(view) != NULL, 0))
			return size <= GMEM_SMALL_COPY
				       ? write_small_entered(view, gpa, buf, size, ret_done, table)
				       : write_large_entered(view, gpa, buf, size, ret_done, table);
		is_done = copy_by_table(table, gpa, buf, size, to_guest);
		gmem_view_leave(view);
	}

	if (__builtin_expect(!is_done, 0))
		return copy_in_parts(view, gpa, buf, size, ret_done, to_guest);
	if (ret_done)
		*ret_done = size;
	return 0;
}

/* The call of these saves registers, so they are not inline; @size is above GMEM_SMALL_COPY. */
static __attribute__((noinline)) int read_large(struct gmem_view *view, uint64_t gpa, void *buf,
						uint64_t size, uint64_t *ret_done)
{
	if (size <= GMEM_SMALL_COPY)
		__builtin_unreachable();
	return copy(view, gpa, buf, size, ret_done, false);
}

static __attribute__((noinline)) int write_large(struct gmem_view *view, uint64_t gpa, void *buf,
						 uint64_t size, uint64_t *ret_done)
{
	if (size <= GMEM_SMALL_COPY)
		__builtin_unreachable();
	return copy(view, gpa, buf, size, ret_done, true);
}

static inline bool can_copy_at_once(const struct gmem_view *view, uint64_t size)
{
	return view && gmem_view_is_fast(view) && size - 1 < SPAN;
}

GMEM_API int gmem_view_read(struct gmem_view *view, uint64_t gpa, void *buf, uint64_t size,
			    uint64_t *ret_done)
{
	if (__builtin_expect(!can_copy_at_once(view, size), 0))
		return copy_in_parts(view, gpa, buf, size, ret_done, false);
	if (size > GMEM_SMALL_COPY)
		return read_large(view, gpa, buf, size, ret_done);
	return copy(view, gpa, buf, size, ret_done, false);
}

GMEM_API int gmem_view_write(struct gmem_view *view, uint64_t gpa, const void *buf, uint64_t size,
			     uint64_t *ret_done)
{
	void *from = (void *)(uintptr_t)buf;

	if (__builtin_expect(!view || size - 1 >= SPAN, 0))
		return copy_in_parts(view, gpa, from, size, ret_done, true);
	if (size > GMEM_SMALL_COPY)
		return write_large(view, gpa, from, size, ret_done);
	return copy(view, gpa, from, size, ret_done, true);
}

GMEM_API int gmem_view_fill(struct gmem_view *view, uint64_t gpa, uint8_t byte, uint64_t size,
			    uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size, .buf = &walk, .byte = byte,
			     .access = fill_part, .writes = true };

	return run(&walk, ret_done);
}

GMEM_API int gmem_view_compare(struct gmem_view *view, uint64_t gpa, const void *buf,
			       uint64_t size, int *ret_order, uint64_t *ret_done)
{
	struct walk walk = { .view = view, .gpa = gpa, .size = size,
			     .buf = (void *)(uintptr_t)buf, .access = compare_part };
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
			     .access = string_part };
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

/* A failure of both sides is told of the side that is written. */
static int fail_copy(uint64_t to, uint64_t from, uint64_t done, uint64_t size,
		     const struct iovec *target, const struct iovec *source, int err)
{
	struct gmem_access_failure failure = {
		.gpa = to, .done = done, .size = size, .hva = target->iov_base, .writes = true, .err = err,
	};

	if (err == -EFAULT && !gmem_nofault_why(target->iov_base, true, err)) {
		failure.gpa = from;
		failure.hva = source->iov_base;
		failure.writes = false;
	}
	return gmem_access_fail(&failure);
}

/* Copies the longest parts that are contiguous in both ranges. */
static int copy_parts(struct gmem_view *view, uint64_t to, uint64_t from, uint64_t size,
		      uint64_t end, uint64_t *done)
{
	struct iovec source, target;
	size_t now;
	int err = 0;

	while (*done < end) {
		err = gmem_view_contiguous(view, from + *done, end - *done, &source);
		if (!err)
			err = gmem_view_contiguous_to_write(view, to + *done, source.iov_len, &target);
		if (err)
			return err;

		now = gmem_nofault_copy(gmem_view_is_fast(view), target.iov_base, source.iov_base,
					target.iov_len, &err);
		gmem_view_wrote(view, to + *done, target.iov_len);
		*done += now;
		target.iov_base = (char *)target.iov_base + now;
		source.iov_base = (char *)source.iov_base + now;
		if (err)
			return fail_copy(to, from, *done, size, &target, &source, err);
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

	do {
		gmem_view_begin(view);
		err = copy_parts(view, to, from, size, end_span(to, done, size), &done);
		gmem_view_end(view);
	} while (!err && done < size);
	if (ret_done)
		*ret_done = done;
	return err;
}

GMEM_API int gmem_view_mark_dirty(struct gmem_view *view, uint64_t gpa, uint64_t size)
{
	int err;

	err = check_access(view, gpa, view, size);
	if (err || !size)
		return err;

	gmem_view_begin(view);
	if (view->table == &gmem_table_of_nothing)
		err = gmem_fail(-ESTALE, "the VM's handle was freed, or the import");
	else if (size <= SPAN)
		gmem_view_wrote(view, gpa, size);
	else
		gmem_view_mark(view, gpa, size);
	gmem_view_end(view);
	return err;
}
