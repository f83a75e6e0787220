/* SPDX-License-Identifier: MIT */
/*
 * crc32c: CRC-32C (Castagnoli), as in iSCSI and ext4.
 *
 * x86_64 and arm64 processors have instructions for it, which are used if present.
 */
#ifndef GMEM_CRC32C_H
#define GMEM_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Ways to compute it, each faster than the one before */
enum gmem_crc32c_way {
	GMEM_CRC32C_PLAIN,	/* without special instructions */
	GMEM_CRC32C_ONE,	/* with the instruction for eight bytes of a CRC */
	GMEM_CRC32C_THREE,	/* three of those side by side, joined by a carry-less product */
	GMEM_CRC32C_FOLD,	/* carry-less products of 64 bytes; AVX-512 alone has them */
};

/* The best way of this processor. All ways before it work, too. */
enum gmem_crc32c_way gmem_crc32c_best(void);

/* Returns the CRC of @bytes, continuing from @crc (0 to start). */
uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size);
/* Returns the CRC of two pieces, one behind the other, from the CRC of each; @size is of the second. */
uint32_t gmem_crc32c_join(uint32_t first, uint32_t second, size_t size);
/* Does the same as gmem_crc32c() in one of the ways that work here, so that tests can compare them. */
uint32_t gmem_crc32c_by(enum gmem_crc32c_way way, uint32_t crc, const void *bytes, size_t size);

#endif
