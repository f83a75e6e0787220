/* SPDX-License-Identifier: MIT */
/*
 * gmem-dump(5) has the format. The list of regions is noted at one moment, under vm->lock.
 * Their memory is measured piece by piece, each under a shared claim. Neither lock nor claim
 * is held while writing, so a slow reader of the fd delays only the caller.
 */
#include "pages/dump.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/check.h"
#include "base/error.h"
#include "base/kind.h"
#include "base/lock.h"
#include "base/opts.h"
#include "base/utf8.h"
#include "base/wait_budget.h"
#include "caps/caps.h"
#include "os/sys.h"
#include "pages/numa.h"
#include "pages/section.h"
#include "region/file.h"
#include "region/page_states.h"
#include "region/host_look.h"
#include "region/present_pages.h"
#include "region/region.h"
#include "region/region_memory.h"
#include "region/regions.h"
#include "region/vm_core.h"
#include "state/claim.h"
#include "state/lease.h"

#define FORMAT 1

/* Cells of a dump by default; each region may add one */
#define CELLS 512

/* Pages of a cell whose node is queried */
#define SAMPLES 16

/* NUMA nodes that a dump counts; kernels may support more, but no machine has them */
#define NODES 64

#define UNKNOWN UINT64_MAX

/* ---- text ---- */

struct writer {
	int fd;
	int err;
	uint64_t wait;			/* nanoseconds to wait for the reader of a non-blocking fd */
	size_t used;
	uint64_t done;
	char buf[8192];
};

/* Returns 0 if the reader may have made room; waits no longer than is left of w->wait. */
static int await_reader(struct writer *w)
{
	uint64_t start = gmem_sys_now(), ms = (w->wait + GMEM_NANOSECONDS_PER_MS - 1) / GMEM_NANOSECONDS_PER_MS;
	uint64_t spent;
	int n;

	if (!w->wait)
		return -EAGAIN;
	n = gmem_sys_poll(w->fd, POLLOUT, ms < INT_MAX ? (int)ms : INT_MAX);
	spent = gmem_sys_now() - start;
	w->wait -= spent < w->wait ? spent : w->wait;
	return n >= 0 || n == -EINTR ? 0 : n;
}

static void flush(struct writer *w)
{
	size_t at = 0;
	int64_t n;

	while (at < w->used && !w->err) {
		n = gmem_sys_write(w->fd, w->buf + at, w->used - at);
		if (n > 0)
			at += (size_t)n;
		else if (n == -EAGAIN)
			w->err = await_reader(w);
		else if (n != -EINTR)
			w->err = n ? (int)n : -EIO;
	}
	w->done += at;
	w->used = 0;
}

static void put_bytes(struct writer *w, const char *bytes, size_t size)
{
	if (size > sizeof(w->buf) - w->used)
		flush(w);
	memcpy(w->buf + w->used, bytes, size);
	w->used += size;
}

/* For a few numbers and words only, which fit into @text by far */
__attribute__((format(printf, 2, 3)))
static void put(struct writer *w, const char *format, ...)
{
	char text[256];
	va_list args;
	int size;

	va_start(args, format);
	size = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	put_bytes(w, text, (size_t)size);
}

/* Names come from the caller and can hold any bytes. */
static void put_string(struct writer *w, const char *s)
{
	char escape[GMEM_UTF8_ESCAPE];
	unsigned int length;
	uint32_t code;

	if (!s) {
		put(w, "null");
		return;
	}

	put(w, "\"");
	for (; (length = gmem_utf8_next(s, &code)); s += length) {
		if (code == '"' || code == '\\')
			put(w, "\\%c", *s);
		else if (gmem_utf8_is_harmless(code))
			put_bytes(w, s, length);
		else
			put(w, "%s", gmem_utf8_escape(code, escape));
	}
	put(w, "\"");
}

static const char *json_bool(bool value)
{
	return value ? "true" : "false";
}

/* ---- the layout at one moment ---- */

struct entry {
	uint64_t gpa;
	uint64_t size;
	uint64_t hva;
	uint64_t file_size;
	uint64_t file_offset;
	uint64_t create_flags;
	int fd;				/* -1: no file */
	uint32_t slot;
	uint32_t backing;
	uint32_t kind;
	uint64_t identity;
	bool is_device;
	bool lost;
	bool read_only;
	bool wants_log;
};

/* A lease, as noted */
struct noted_lease {
	uint64_t gpa;
	uint64_t size;
	char holder[64];
};

struct layout {
	struct noted_lease *leases;
	size_t lease_count;
	struct entry *entries;
	size_t count, room;
	size_t stuck;			/* of count, at the end: removed, but still have memslots */
	uint64_t total;			/* bytes of the other regions, without devices */
};

static int note_region(struct layout *layout, const struct gmem_region *region)
{
	const struct gmem_file *file = region->file;

	if (layout->count == layout->room) {
		size_t room = layout->room ? 2 * layout->room : 16;
		struct entry *entries = realloc(layout->entries, room * sizeof(*entries));

		if (!entries)
			return gmem_fail(-ENOMEM, "no memory to note %zu regions", room);
		layout->entries = entries;
		layout->room = room;
	}

	layout->entries[layout->count++] = (struct entry){
		.gpa = region->gpa.start,
		.size = region->gpa.size,
		.hva = region->hva.start,
		.fd = file ? file->fd : -1,
		.file_size = file ? file->size : 0,
		.file_offset = region->file_offset,
		.create_flags = file ? file->create_flags : 0,
		.slot = region->slot,
		.backing = region->backing,
		.kind = region->kind,
		.identity = region->identity,
		.is_device = region->is_device,
		.lost = region->lost,
		.read_only = gmem_region_is_read_only(region),
		.wants_log = gmem_region_wants_log(region),
	};
	return 0;
}

static int note_leases(const struct gmem_vm *vm, struct layout *layout)
{
	const struct gmem_lease *lease;
	size_t count = 0;

	for (lease = gmem_lease_next(vm, NULL); lease; lease = gmem_lease_next(vm, lease))
		count++;
	if (!count)
		return 0;

	layout->leases = calloc(count, sizeof(*layout->leases));
	if (!layout->leases)
		return gmem_fail(-ENOMEM, "no memory to note %zu leases", count);
	for (lease = gmem_lease_next(vm, NULL); lease; lease = gmem_lease_next(vm, lease)) {
		struct noted_lease *noted = &layout->leases[layout->lease_count++];

		noted->gpa = lease->at.start;
		noted->size = lease->at.last - lease->at.start + 1;
		snprintf(noted->holder, sizeof(noted->holder), "%s", lease->holder);
	}
	return 0;
}

static int note_layout(const struct gmem_vm *vm, struct layout *layout)
{
	struct gmem_stretch at = GMEM_REGIONS_WALK(vm, 0, UINT64_MAX);
	const struct gmem_region *region;
	int err = 0;

	while (!err && gmem_regions_walk_whole(&at)) {
		if (!at.region)
			continue;
		err = note_region(layout, at.region);
		layout->total += gmem_region_has_use(at.region, GMEM_USE_COUNT) ? at.size : 0;
	}

	for (region = vm->stuck; region && !err; region = region->next_stuck) {
		err = note_region(layout, region);
		layout->stuck++;
	}
	return err ? err : note_leases(vm, layout);
}

static void free_layout(struct layout *layout)
{
	free(layout->leases);
	free(layout->entries);
}

static int take_layout(struct gmem_vm *vm, struct layout *layout)
{
	int err;

	gmem_lock_take(&vm->lock);
	err = note_layout(vm, layout);
	gmem_lock_drop(&vm->lock);
	if (err)
		free_layout(layout);
	return err;
}

/* ---- measuring the memory ---- */

/* A part of a region that is measured at once */
struct cell {
	uint64_t gpa;
	uint64_t size;
	uint64_t private;		/* bytes in private state, or UNKNOWN */
	uint64_t shared_resident;	/* bytes, or UNKNOWN */
	uint64_t private_resident;
	uint64_t nodes[NODES];		/* sampled pages on each node */
};

/* A part of a cell that is measured under one claim */
struct piece {
	uint64_t offset;		/* in the region */
	uint64_t size;
	uint64_t samples;		/* pages whose node is queried */
};

/* Find the noted region again, or NULL if it changed. Call with vm->lock held. */
static const struct gmem_region *find_again(const struct gmem_vm *vm, const struct entry *entry)
{
	const struct gmem_region *region = gmem_regions_at(vm, entry->gpa);

	if (!region || region->gpa.start != entry->gpa || region->gpa.size != entry->size)
		return NULL;

	if (region->kind != entry->kind || region->backing != entry->backing ||
	    region->hva.start != entry->hva || region->file_offset != entry->file_offset ||
	    (region->file ? region->file->fd : -1) != entry->fd)
		return NULL;
	return region;
}

static uint64_t resident(const struct gmem_region *region, uint32_t side, uint64_t offset,
			 uint64_t size)
{
	uint64_t bytes;

	return gmem_region_memory_resident(region, side, offset, size, &bytes) ? UNKNOWN : bytes;
}

/* Picks pages to query at even distances among those that exist */
struct sampler {
	const struct gmem_region *region;
	struct cell *cell;
	uint32_t side;
	uint64_t stride;		/* bytes that exist from one page to the next */
	uint64_t wait;			/* bytes that exist before the next page */
};

static void ask_about_page(const struct sampler *s, uint64_t offset)
{
	struct gmem_numa_pages pages = {
		.size = sizeof(pages), .nodes = NODES, .on_node = s->cell->nodes,
	};

	/* The count is added to nodes. After a failure the page's node stays uncounted. */
	(void)gmem_region_count_nodes(s->region, s->side, offset, gmem_sys_page_size(), &pages);
}

static int sample_run(void *data, uint64_t offset, uint64_t size)
{
	struct sampler *s = data;

	for (; size > s->wait; s->wait = s->stride) {
		offset += s->wait;
		size -= s->wait;
		ask_about_page(s, offset);
	}
	s->wait -= size;
	return 0;
}

/* @samples pages of a piece, of which @bytes exist */
static void sample_nodes(const struct gmem_region *region, uint32_t side, const struct piece *piece,
			 uint64_t bytes, struct cell *cell)
{
	uint64_t page = gmem_sys_page_size(), pages = bytes / page;
	/* What userfaultfd owes is not there yet. */
	struct gmem_host_look look = { .file = -1, .hint = -1, .has_owed = true };
	struct sampler s = {
		.region = region,
		.cell = cell,
		.side = side,
		.stride = (pages + piece->samples - 1) / piece->samples * page,
	};

	if (bytes != UNKNOWN && pages)
		(void)gmem_region_present_pages(region, side, piece->offset, piece->size, &look, sample_run,
						&s);
	gmem_host_look_end(&look);
}

static void add_resident(const struct gmem_region *region, uint32_t side, const struct piece *piece,
			 struct cell *cell, uint64_t *sum)
{
	uint64_t bytes = resident(region, side, piece->offset, piece->size);

	*sum = bytes == UNKNOWN || *sum == UNKNOWN ? UNKNOWN : *sum + bytes;
	sample_nodes(region, side, piece, bytes, cell);
}

static void measure(const struct gmem_region *region, const struct piece *piece, struct cell *cell)
{
	if (!gmem_region_is_both_sides(region))
		add_resident(region, GMEM_SIDE_SHARED, piece, cell, &cell->shared_resident);
	if (gmem_region_traits(region)->has_sides)
		add_resident(region, GMEM_SIDE_PRIVATE, piece, cell, &cell->private_resident);
}

/* Returns false if the region changed since it was noted. */
static bool measure_piece(struct gmem_vm *vm, const struct entry *entry, const struct piece *piece,
			  struct gmem_wait_budget *budget, struct cell *cell)
{
	struct gmem_claim claim = {
		.gpa = entry->gpa + piece->offset, .size = piece->size, .mode = GMEM_CLAIM_SHARED,
	};
	const struct gmem_region *region = NULL;
	int err;

	gmem_lock_take(&vm->lock);
	err = gmem_claim_take(vm, &claim, budget);
	if (!err)
		region = find_again(vm, entry);
	if (region && gmem_region_traits(region)->has_sides)
		cell->private += gmem_states_count(&region->states, GMEM_PAGE_PRIVATE,
						 claim.gpa - region->gpa.start, claim.size);
	gmem_lock_drop(&vm->lock);
	if (err)
		return false;
	if (region)
		measure(region, piece, cell);

	gmem_lock_take(&vm->lock);
	gmem_claim_drop(vm, &claim);
	gmem_lock_drop(&vm->lock);
	return region;
}

/* A cell may be large, so conversions get their turn between the pieces of one, too. */
static bool measure_cell(struct gmem_vm *vm, const struct entry *entry,
			 struct gmem_wait_budget *budget, struct cell *cell)
{
	struct piece piece = { .offset = cell->gpa - entry->gpa };
	uint64_t pieces = (cell->size - 1) / GMEM_SECTION_PIECE + 1, left;

	piece.samples = (SAMPLES + pieces - 1) / pieces;
	for (left = cell->size; left; left -= piece.size, piece.offset += piece.size) {
		piece.size = left < GMEM_SECTION_PIECE ? left : GMEM_SECTION_PIECE;
		if (!measure_piece(vm, entry, &piece, budget, cell))
			return false;
	}
	return true;
}

/* ---- joining cells that are alike into ranges ---- */

/* Returns 0 if part is none of whole, 1 if all, 2 if unknown, 3 if some of it. */
static unsigned int kind(uint64_t part, uint64_t whole)
{
	return part == 0 ? 0 : part == whole ? 1 : part == UNKNOWN ? 2 : 3;
}

static bool part_is_alike(uint64_t a, uint64_t a_whole, uint64_t b, uint64_t b_whole)
{
	return kind(a, a_whole) != 3 && kind(a, a_whole) == kind(b, b_whole);
}

/* Returns the only node with pages, -1 if there is none, -2 if there are several. */
static int only_node(const struct cell *cell)
{
	int only = -1;

	for (int i = 0; i < NODES; i++)
		if (cell->nodes[i])
			only = only == -1 ? i : -2;
	return only;
}

static bool is_alike(const struct cell *a, const struct cell *b)
{
	return part_is_alike(a->private, a->size, b->private, b->size) &&
	       part_is_alike(a->shared_resident, a->size, b->shared_resident, b->size) &&
	       part_is_alike(a->private_resident, a->size, b->private_resident, b->size) &&
	       only_node(a) != -2 && only_node(a) == only_node(b);
}

static void add_part(uint64_t *sum, uint64_t part)
{
	if (part != UNKNOWN)
		*sum += part;
}

static void join(struct cell *cell, const struct cell *next)
{
	cell->size += next->size;
	add_part(&cell->private, next->private);
	add_part(&cell->shared_resident, next->shared_resident);
	add_part(&cell->private_resident, next->private_resident);
	for (int i = 0; i < NODES; i++)
		cell->nodes[i] += next->nodes[i];
}

static void put_number(struct writer *w, const char *name, uint64_t value)
{
	put(w, ",\"%s\":", name);
	put(w, value == UNKNOWN ? "null" : "%" PRIu64, value);
}

static void put_range(struct writer *w, const struct cell *cell, bool first)
{
	const char *comma = "";

	put(w, "%s\n  {\"gpa\":%" PRIu64 ",\"size\":%" PRIu64, first ? "" : ",", cell->gpa, cell->size);
	put_number(w, "private", cell->private);
	put_number(w, "shared_resident", cell->shared_resident);
	put_number(w, "private_resident", cell->private_resident);
	put(w, ",\"nodes\":[");
	for (int i = 0; i < NODES; i++) {
		if (!cell->nodes[i])
			continue;
		put(w, "%s{\"node\":%d,\"pages\":%" PRIu64 "}", comma, i, cell->nodes[i]);
		comma = ",";
	}
	put(w, "]}");
}

static void put_ranges(struct writer *w, struct gmem_vm *vm, const struct entry *entry,
		       struct gmem_wait_budget *budget, uint64_t cell_size)
{
	struct cell open = { 0 }, cell;
	bool first = true;
	uint64_t done;

	for (done = 0; done < entry->size && !w->err; done += cell.size) {
		cell = (struct cell){ .gpa = entry->gpa + done };
		cell.size = entry->size - done < cell_size ? entry->size - done : cell_size;
		if (!measure_cell(vm, entry, budget, &cell))
			break;
		if (open.size && is_alike(&open, &cell)) {
			join(&open, &cell);
			continue;
		}
		if (open.size) {
			put_range(w, &open, first);
			first = false;
		}
		open = cell;
	}
	if (open.size)
		put_range(w, &open, first);
}

/* ---- the whole dump ---- */

static uint64_t choose_cell(const struct layout *layout)
{
	uint64_t cell = gmem_sys_page_size();

	while (cell < layout->total / CELLS)
		cell *= 2;
	return cell;
}

static void put_head(struct writer *w, const struct gmem_vm *vm, const char *name)
{
	uint64_t bits = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_BITS);

	put(w, "{\"gmem_dump\":%d,\"library\":\"%s\",\"name\":", FORMAT, gmem_version());
	put_string(w, name);
	put(w, ",\n\"architecture\":\"%s\",\"page_size\":%" PRIu64 ",\"address_bits\":",
	    gmem_sys_architecture(), gmem_sys_page_size());
	put(w, bits ? "%" PRIu64 : "null", bits);
	put(w, ",\"memslots\":%" PRIu32 ",\"address_space\":%" PRIu32 ",\n", vm->slots.count,
	    vm->address_space);
}

static void put_file(struct writer *w, const struct entry *entry)
{
	if (entry->fd < 0)
		put(w, "\"file\":null");
	else
		put(w, "\"file\":{\"fd\":%d,\"size\":%" PRIu64 ",\"offset\":%" PRIu64
		    ",\"create_flags\":%" PRIu64 "}", entry->fd, entry->file_size,
		    entry->file_offset, entry->create_flags);
}

static void put_entry(struct writer *w, const struct entry *entry, bool show_hva)
{
	put(w, "{\"gpa\":%" PRIu64 ",\"size\":%" PRIu64 ",\"backing\":\"%s\",\"slot\":", entry->gpa,
	    entry->size, entry->is_device ? "device" : gmem_backing_name(entry->backing));
	put(w, entry->is_device ? "null" : "%" PRIu32, entry->slot);
	put(w, ",\"kind\":");
	put(w, entry->is_device ? "null" : "\"%s\"", gmem_kind_name(entry->kind));
	put(w, ",\"identity\":%" PRIu64 ",\"lost\":%s,\"readonly\":%s,\"dirty_log\":%s,\n ",
	    entry->identity, json_bool(entry->lost),
	    json_bool(entry->read_only), json_bool(entry->wants_log));
	put_file(w, entry);
	put(w, ",\"hva\":");
	put(w, show_hva && !entry->is_device ? "%" PRIu64 : "null", entry->hva);
	put(w, ",\n \"ranges\":[");
}

static void put_regions(struct writer *w, struct gmem_vm *vm, const struct layout *layout,
			const struct gmem_dump_opts *opts)
{
	uint64_t cell = opts->cell ? opts->cell : choose_cell(layout);
	struct gmem_wait_budget budget = gmem_vm_budget(vm, 0);
	bool show_hva = opts->flags & GMEM_DUMP_HVA;
	size_t count = layout->count - layout->stuck;

	put(w, "\"regions\":[");
	for (size_t i = 0; i < count && !w->err; i++) {
		put(w, i ? ",\n" : "\n");
		put_entry(w, &layout->entries[i], show_hva);
		if (gmem_kind_has(layout->entries[i].kind, GMEM_USE_COUNT) &&
		    !(opts->flags & GMEM_DUMP_LAYOUT_ONLY))
			put_ranges(w, vm, &layout->entries[i], &budget, cell);
		put(w, "]}");
	}

	put(w, "],\n\"stuck\":[");
	for (size_t i = count; i < layout->count && !w->err; i++) {
		put(w, i > count ? ",\n" : "\n");
		put_entry(w, &layout->entries[i], show_hva);
		put(w, "]}");
	}
	put(w, "]");
}

static void put_leases(struct writer *w, const struct layout *layout)
{
	put(w, ",\n\"leases\":[");
	for (size_t i = 0; i < layout->lease_count && !w->err; i++) {
		const struct noted_lease *noted = &layout->leases[i];

		put(w, "%s\n{\"gpa\":%" PRIu64 ",\"size\":%" PRIu64 ",\"holder\":", i ? "," : "",
		    noted->gpa, noted->size);
		put_string(w, noted->holder);
		put(w, "}");
	}
	put(w, "]");
}

static int check(const struct gmem_vm *vm, int fd, const struct gmem_dump_opts *user_opts,
		 struct gmem_dump_opts *opts)
{
	int err;

	if (!vm)
		return gmem_fail(-EINVAL, "vm is NULL");
	if (fd < 0)
		return gmem_fail(-EBADF, "%d is no fd to write a dump to", fd);

	err = gmem_claim_check_not_owner(vm);
	if (err)
		return err;
	err = GMEM_COPY_OPTS(gmem_dump_opts, opts, user_opts, cell);
	if (!err)
		err = gmem_check_flags("flags", opts->flags, GMEM_DUMP_HVA | GMEM_DUMP_LAYOUT_ONLY);
	return err ? err : gmem_check_alignment(opts->cell);
}

static int write_dump(struct gmem_vm *vm, int fd, const struct gmem_dump_opts *opts, uint32_t wait_ms)
{
	struct layout layout = { 0 };
	struct writer *w;
	uint64_t limit;
	int err;

	w = calloc(1, sizeof(*w));
	if (!w)
		return gmem_fail(-ENOMEM, "no memory to write a dump with");
	w->fd = fd;
	w->wait = wait_ms * GMEM_NANOSECONDS_PER_MS;

	err = take_layout(vm, &layout);
	if (err)
		goto free_writer;

	put_head(w, vm, opts->name);
	put_regions(w, vm, &layout, opts);
	put_leases(w, &layout);
	put(w, "}\n");
	flush(w);
	limit = w->err == -EFBIG ? gmem_sys_limit(RLIMIT_FSIZE) : UINT64_MAX;
	if (limit != UINT64_MAX)
		err = gmem_fail(w->err, "fd %d took %" PRIu64 " bytes of a dump and no more: RLIMIT_FSIZE "
				"ends files at 0x%" PRIx64, fd, w->done, limit);
	else if (w->err)
		err = gmem_fail(w->err, "fd %d took %" PRIu64 " bytes of a dump and no more: %s", fd,
				w->done, gmem_errno_name(w->err));
	free_layout(&layout);

free_writer:
	free(w);
	return err;
}

GMEM_API int gmem_vm_dump(struct gmem_vm *vm, int fd, const struct gmem_dump_opts *user_opts)
{
	struct gmem_dump_opts opts;
	int err = check(vm, fd, user_opts, &opts);

	return err ? err : gmem_vm_log_error(vm, write_dump(vm, fd, &opts, 0));
}

/* ---- serving dumps ---- */

/* If another thread took the connection, accept4(2) on a blocking socket would wait for the next. */
static int check_listens(int fd)
{
	struct gmem_fd_kind kind;
	int err = gmem_sys_fd_kind(fd, &kind);

	if (err)
		return gmem_fail(err, "fd %d: %s", fd, gmem_errno_name(err));
	return kind.never_blocks ? 0 : gmem_fail(-EINVAL, "fd %d is not O_NONBLOCK: accepting could block", fd);
}

GMEM_API int gmem_vm_serve_dump(struct gmem_vm *vm, int listening_fd,
				const struct gmem_dump_opts *user_opts, uint32_t wait_ms)
{
	struct gmem_dump_opts opts;
	int err = check(vm, listening_fd, user_opts, &opts), fd;

	if (!err)
		err = check_listens(listening_fd);
	if (err)
		return err;

	fd = gmem_sys_accept(listening_fd);
	/* ECONNABORTED: whoever it was has gone. */
	if (fd == -EAGAIN || fd == -ECONNABORTED)
		return 0;
	if (fd < 0)
		return gmem_fail(fd, "accepting on fd %d: %s", listening_fd, gmem_errno_name(fd));

	err = write_dump(vm, fd, &opts, wait_ms);
	gmem_sys_close(fd);
	return err ? err : 1;
}
