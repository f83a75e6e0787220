/* SPDX-License-Identifier: MIT */
#include "transfer/image.h"

#include "base/crc32c.h"

const char gmem_image_kinds[IMAGE_KINDS][8] = {
	[IMAGE_HEAD] = "GMEMHEAD",
	[IMAGE_REGIONS] = "GMEMREGN",
	[IMAGE_ELSEWHERE] = "GMEMELSE",
	[IMAGE_PRIVATE] = "GMEMPRIV",
	[IMAGE_DATA] = "GMEMDATA",
	[IMAGE_LOST] = "GMEMLOST",
	[IMAGE_END] = "GMEM_END",
};

uint32_t gmem_image_checksum(const struct image_record *record)
{
	struct image_record start = *record;

	start.checksum = 0;
	return gmem_crc32c(gmem_crc32c(0, &start, sizeof(start)), record + 1,
			   record->size - sizeof(start));
}
