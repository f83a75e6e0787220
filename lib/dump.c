/* SPDX-License-Identifier: MIT */
/*
 * A running layout, written down: gmem-dump(5) has the format. What the
 * regions are is noted at one moment, under the lock, and written with no lock
 * held, so that whoever reads the other end of the fd slows down nobody but
 * the caller.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "utf8.h"

#define FORMAT 1

/* ---- text ---- */

struct writer {
	int fd;
	int err;
	size_t used;
	uint64_t done;
	char buf[8192];
};

static void flush(struct writer *w)
{
	size_t at = 0;
	int64_t n;

	while (at < w->used && !w->err) {
		n = gmem_sys_write(w->fd, w->buf + at, w->used - at);
		if (n > 0)
			at += (size_t)n;
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

/* A few numbers and words; far from the end of @text. */
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

/* A name can hold any bytes. */
static void put_string(struct writer *w, const char *string)
{
	const unsigned char *s = (const unsigned char *)string;
	unsigned int length;

	if (!string) {
		put(w, "null");
		return;
	}

	put(w, "\"");
	for (; *s; s += length) {
		length = gmem_utf8_length(s);
		if (!length) {
			put(w, "\\ufffd");
			length = 1;
		} else if (*s == '"' || *s == '\\') {
			put(w, "\\%c", *s);
		} else if (*s < 0x20 || *s == 0x7f) {
			put(w, "\\u%04x", *s);
		} else {
			put_bytes(w, (const char *)s, length);
		}
	}
	put(w, "\"");
}

static const char *truth(bool value)
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
	uint32_t slot_flags;
	uint32_t backing;
	bool is_device;
	bool lost;
};

struct layout {
	struct entry *entries;
	size_t count, room;
	size_t stuck;			/* of them, at the end: not in the layout any more */
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
		.slot_flags = region->slot_flags,
		.backing = region->backing,
		.is_device = region->is_device,
		.lost = region->lost,
	};
	return 0;
}

static int note_layout(const struct gmem_vm *vm, struct layout *layout)
{
	const struct gmem_region *region;
	const struct gmem_range *range;
	uint64_t at = 0;
	int err = 0;

	/* A region may end where addresses do. */
	do {
		range = gmem_range_find(&vm->regions, at, UINT64_MAX - at);
		if (!range)
			break;
		region = GMEM_CONTAINER_OF(range, struct gmem_region, gpa);
		err = note_region(layout, region);
		at = range->start + range->size;
	} while (!err && at);

	for (region = vm->stuck; region && !err; region = region->next_stuck) {
		err = note_region(layout, region);
		layout->stuck++;
	}
	return err;
}

static int take_layout(struct gmem_vm *vm, struct layout *layout)
{
	int err;

	pthread_mutex_lock(&vm->lock);
	err = note_layout(vm, layout);
	pthread_mutex_unlock(&vm->lock);
	if (err)
		free(layout->entries);
	return err;
}

/* ---- all of it ---- */

static void put_head(struct writer *w, const struct gmem_vm *vm, const char *name)
{
	uint64_t bits = gmem_caps_value(&vm->caps, GMEM_CAP_ADDRESS_BITS);

	put(w, "{\"gmem_dump\":%d,\"library\":\"%s\",\"name\":", FORMAT, gmem_version());
	put_string(w, name);
	put(w, ",\n\"architecture\":\"%s\",\"page_size\":%" PRIu64 ",\"address_bits\":",
	    gmem_sys_architecture(), gmem_sys_page_size());
	put(w, bits ? "%" PRIu64 : "null", bits);
	put(w, ",\"memslots\":%" PRIu32 ",\n", vm->slots.count);
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
	put(w, ",\"lost\":%s,\"readonly\":%s,\"dirty_log\":%s,\n ", truth(entry->lost),
	    truth(entry->slot_flags & KVM_MEM_READONLY),
	    truth(entry->slot_flags & KVM_MEM_LOG_DIRTY_PAGES));
	put_file(w, entry);
	put(w, ",\"hva\":");
	put(w, show_hva && !entry->is_device ? "%" PRIu64 : "null", entry->hva);
}

static void put_regions(struct writer *w, const struct layout *layout, bool show_hva)
{
	size_t count = layout->count - layout->stuck;

	put(w, "\"regions\":[");
	for (size_t i = 0; i < count && !w->err; i++) {
		put(w, i ? ",\n" : "\n");
		put_entry(w, &layout->entries[i], show_hva);
		put(w, "}");
	}

	put(w, "],\n\"stuck\":[");
	for (size_t i = count; i < layout->count && !w->err; i++) {
		put(w, i > count ? ",\n" : "\n");
		put_entry(w, &layout->entries[i], show_hva);
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

	err = GMEM_IMPORT(gmem_dump_opts, opts, user_opts, name);
	if (!err)
		err = gmem_check_flags("flags", opts->flags, GMEM_DUMP_HVA);
	return err;
}

GMEM_API int gmem_vm_dump(struct gmem_vm *vm, int fd, const struct gmem_dump_opts *user_opts)
{
	struct layout layout = { 0 };
	struct gmem_dump_opts opts;
	struct writer *w;
	int err;

	err = check(vm, fd, user_opts, &opts);
	if (err)
		return err;

	w = calloc(1, sizeof(*w));
	if (!w)
		return gmem_fail(-ENOMEM, "no memory to write a dump with");
	w->fd = fd;

	err = take_layout(vm, &layout);
	if (err)
		goto free_writer;

	put_head(w, vm, opts.name);
	put_regions(w, &layout, opts.flags & GMEM_DUMP_HVA);
	put(w, "}\n");
	flush(w);
	if (w->err)
		err = gmem_fail(w->err, "fd %d took %" PRIu64 " bytes of a dump and no more: %s", fd,
				w->done, gmem_errno_name(w->err));
	free(layout.entries);

free_writer:
	free(w);
	return gmem_vm_report(vm, err);
}
