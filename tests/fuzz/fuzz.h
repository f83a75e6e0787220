/* SPDX-License-Identifier: MIT */
/* Helpers of the fuzz targets: the input, and a check that ends the program */
#ifndef GMEM_FUZZ_H
#define GMEM_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "gmem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                        \
	do {                                                                    \
		if (!(condition)) {                                             \
			fprintf(stderr, "%s:%d: not so: %s; the last sentence: %s\n", \
				__FILE__, __LINE__, #condition, gmem_last_error()); \
			abort();                                                \
		}                                                               \
	} while (0)

struct fuzz_input {
	const uint8_t *data;
	size_t left;
};

/* The next byte. At the end there are zeros, so that any input is a valid one. */
static inline uint8_t fuzz_take(struct fuzz_input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->data++;
}

static inline uint64_t fuzz_take_below(struct fuzz_input *in, uint64_t limit)
{
	uint64_t value = fuzz_take(in);

	if (limit > 256)
		value = value << 8 | fuzz_take(in);
	return value % limit;
}

#endif
