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

/* Returns the CRC of @bytes, continuing from @crc (0 to start). */
uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size);
/* Does the same without special instructions, so that tests can compare the two. */
uint32_t gmem_crc32c_plain(uint32_t crc, const void *bytes, size_t size);

#endif
