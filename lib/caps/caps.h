/* SPDX-License-Identifier: MIT */
/* caps: the capability report of a VM or a host. A report never changes once made. */
#ifndef GMEM_CAPS_H
#define GMEM_CAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

struct gmem_line {
	const char *remedy;
	int64_t value;
	uint32_t answer;
	uint32_t has_value;
	char reason[200];
};

struct gmem_caps {
	bool has_vm;
	struct gmem_line lines[GMEM_CAP_COUNT];
};

bool gmem_caps_says(const struct gmem_caps *caps, enum gmem_cap cap, uint32_t answer);
/* The line's number, 0 if it has none */
uint64_t gmem_caps_value(const struct gmem_caps *caps, enum gmem_cap cap);

#endif
