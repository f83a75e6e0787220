/* SPDX-License-Identifier: MIT */
/* crc32c: CRC-32C (Castagnoli), with the processor's instructions where it has them. */
#ifndef GMEM_CRC32C_H
#define GMEM_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC of @bytes, continuing from @crc (0 to start) */
uint32_t gmem_crc32c(uint32_t crc, const void *bytes, size_t size);
/* The same without special instructions */
uint32_t gmem_crc32c_plain(uint32_t crc, const void *bytes, size_t size);

#endif
