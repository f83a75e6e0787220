/* SPDX-License-Identifier: MIT */
#include "transfer/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/crc32c.h"
#include "base/error.h"

const char gmem_image_kinds[IMAGE_KINDS][8] = {
	[IMAGE_HEAD] = "GMEMHEAD",
	[IMAGE_REGIONS] = "GMEMREGN",
	[IMAGE_ELSEWHERE] = "GMEMELSE",
	[IMAGE_PRIVATE] = "GMEMPRIV",
	[IMAGE_DATA] = "GMEMDATA",
	[IMAGE_LOST] = "GMEMLOST",
	[IMAGE_END] = "GMEM_END",
};

int gmem_image_bad(uint64_t number, const char *format, ...)
{
	char what[160];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	return gmem_fail(-EBADMSG, "record %" PRIu64 " of the image: %s", number, what);
}

bool gmem_image_has_entries(const struct image_record *record, size_t size)
{
	return record->count && record->count <= (record->size - sizeof(*record)) / size;
}

/* The CRC-32C of the first @size bytes, with 0 in place of the checksum */
static uint32_t checksum_of(const struct image_record *record, uint64_t size)
{
	struct image_record start = *record;

	start.checksum = 0;
	return gmem_crc32c(gmem_crc32c(0, &start, sizeof(start)), record + 1, size - sizeof(start));
}

uint32_t gmem_image_checksum(const struct image_record *record)
{
	return checksum_of(record, record->size);
}

uint32_t gmem_image_join_checksum(const struct image_record *record, uint32_t rest)
{
	return gmem_crc32c_join(checksum_of(record, IMAGE_BLOCK), rest, record->size - IMAGE_BLOCK);
}
