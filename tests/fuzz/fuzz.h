/* SPDX-License-Identifier: MIT */
#ifndef GMEM_FUZZ_H
#define GMEM_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
