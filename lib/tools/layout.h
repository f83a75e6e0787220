/* SPDX-License-Identifier: MIT */
/* gmem-show: what a dump says, checked, and the ways to show it. */
#ifndef TOOLS_LAYOUT_H
#define TOOLS_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNKNOWN UINT64_MAX

enum { SHARED, PRIVATE, SIDES };

struct share {
	uint64_t node;
	uint64_t pages;
};

/* Part of a region */
struct piece {
	uint64_t gpa;
	uint64_t size;
	uint64_t private;		/* bytes in that state, or UNKNOWN */
	uint64_t resident[SIDES];	/* bytes, or UNKNOWN */
	struct share *nodes;
	size_t node_count;
};

struct region {
	uint64_t gpa;
	uint64_t size;
	const char *backing;
	bool is_device;
	bool has_private_side;
	bool has_slot;
	bool lost, readonly, dirty_log;
	bool has_file;
	bool has_hva;
	uint64_t slot;
	uint64_t fd, file_size, file_offset, create_flags;
	uint64_t hva;
	struct piece *pieces;
	size_t piece_count;
};

struct lease {
	uint64_t gpa;
	uint64_t size;
	const char *holder;
};

struct layout {
	const char *library, *name, *architecture;
	uint64_t page_size;
	uint64_t address_bits;		/* or UNKNOWN */
	uint64_t memslots;
	struct region *regions;
	size_t region_count;
	struct region *stuck;
	size_t stuck_count;
	struct lease *leases;
	size_t lease_count;
};

/* The strings are the document's. false: @error, of @size bytes, says why. */
struct json;
bool take_layout(const struct json *root, struct layout *ret, char *error, size_t size);
void free_layout(struct layout *layout);

/* ---- sums ---- */

struct totals {
	uint64_t memory;		/* bytes of all regions that are no devices' */
	uint64_t devices;		/* bytes of those that are */
	uint64_t device_count;
	uint64_t private;		/* bytes in that state */
	uint64_t resident[SIDES];	/* of what is known */
	uint64_t unknown;		/* bytes of memory of which a side is not known */
	uint64_t highest_node;		/* UNKNOWN: none is known */
	uint64_t lowest_node;
};

void add_up(const struct region *regions, size_t count, struct totals *ret);

/* A stretch of a region, as one character of a picture shows it */
struct cell {
	double size;			/* bytes of it that are described */
	double private;			/* of these */
	double resident[SIDES];
	bool known[SIDES];
	bool state_known;
	uint64_t node;			/* where most of it is, or UNKNOWN */
};

/* @index of @count equal stretches */
void look_at_cell(const struct region *region, size_t index, size_t count, struct cell *ret);

/* "64 MiB", "1.5 GiB"; in @buf, at least SIZE_TEXT bytes */
#define SIZE_TEXT 24
const char *size_text(uint64_t bytes, char *buf);

/* ---- pictures ---- */

struct style {
	unsigned int width;		/* of the terminal */
	bool color;
	bool unicode;
	bool every_region;		/* with a picture, however many */
};

void print_picture(const struct layout *layout, const struct style *style);
void print_svg(const struct layout *layout);
void print_layout_json(const struct layout *layout);

#endif
