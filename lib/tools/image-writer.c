/* SPDX-License-Identifier: MIT */
#include "image-writer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "gmem-image.h"
#include "text.h"

static void count_records(struct image_writer *writer)
{
	const struct image_record *record;

	for (; writer->counted < writer->unit.used; writer->counted += record->size) {
		record = (const void *)(writer->unit.bytes + writer->counted);
		writer->checksums = gmem_crc32c(writer->checksums, &record->checksum,
						sizeof(record->checksum));
	}
}

/* Writes the unit, which is full or the last one, and begins another. */
static void write_unit(struct image_writer *writer)
{
	const struct gmem_image_unit *unit = &writer->unit;
	ssize_t count;

	count_records(writer);
	for (uint64_t at = 0; at < unit->used; at += (uint64_t)count) {
		count = write(writer->fd, unit->bytes + at, unit->used - at);
		if (count < 0 && errno == EINTR)
			count = 0;
		else if (count < 0) {
			print_error("%s: %s", writer->name, strerror(errno));
			exit(EXIT_NO_IMAGE);
		}
	}
	writer->unit = gmem_image_unit_after(unit, unit->bytes);
	writer->counted = 0;
}

void writer_begin(struct image_writer *writer, const struct gmem_image_origin *origin)
{
	writer->unit = (struct gmem_image_unit){
		.bytes = check_memory(malloc(IMAGE_UNIT)), .id = origin->id, .version = origin->version,
	};
	gmem_image_unit_put_head(&writer->unit, origin);
}

void writer_list(struct image_writer *writer, enum image_kind kind, const void *entries, size_t count,
		 size_t size)
{
	const char *from = entries;
	void *to;
	size_t now;

	for (; count; count -= now, from += now * size) {
		now = gmem_image_unit_begin_list(&writer->unit, kind, count, size, &to);
		if (!now) {
			write_unit(writer);
			continue;
		}
		memcpy(to, from, now * size);
		gmem_image_unit_end_list(&writer->unit, now * size);
	}
}

static void put_pages(struct image_writer *writer, const struct piece *piece)
{
	struct gmem_image_unit *unit = &writer->unit;
	const bool is_zero = piece->what == PIECE_ZERO;
	uint64_t gpa = piece->gpa, pages = (piece->last - gpa) / IMAGE_BLOCK + 1, now;
	const char *from = piece->bytes;

	for (; pages; pages -= now, gpa += now * IMAGE_BLOCK) {
		now = gmem_image_unit_room(unit, gpa, is_zero);
		now = now < pages ? now : pages;
		if (!now) {
			write_unit(writer);
			continue;
		}
		if (!is_zero) {
			memcpy(gmem_image_unit_next_page(unit), from, now * IMAGE_BLOCK);
			unit->checksum = gmem_crc32c(unit->checksum, from, now * IMAGE_BLOCK);
			from += now * IMAGE_BLOCK;
			writer->pages += now;
		}
		gmem_image_unit_add(unit, gpa, now, is_zero);
	}
}

void writer_put(struct image_writer *writer, const struct piece *piece)
{
	/* What a full image does not have is zero. */
	if (piece->what == PIECE_DATA || (piece->what == PIECE_ZERO && writer->unit.version != IMAGE_VERSION))
		put_pages(writer, piece);
	if (piece->what == PIECE_LOST)
		while (!gmem_image_unit_add_lost(&writer->unit, piece->gpa, piece->last - piece->gpa + 1))
			write_unit(writer);
}

void writer_end(struct image_writer *writer)
{
	struct gmem_image_unit *unit = &writer->unit;
	struct stat st;
	bool is_pipe = fstat(writer->fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode));

	while (!gmem_image_unit_close(unit))
		write_unit(writer);
	count_records(writer);
	/* What is not complete, the unit counts itself. */
	gmem_image_unit_put_end(unit, writer->pages - unit->filled, writer->checksums, is_pipe);
	write_unit(writer);
	free(unit->bytes);
}
