/* SPDX-License-Identifier: MIT */
/*
 * layout: a dump that gmem-show has read and checked, its sums, and the ways to show it.
 *
 * A dump comes from anywhere: a struct layout keeps every promise of gmem-dump(5), so the
 * code that shows it checks nothing.
 */
#ifndef TOOLS_LAYOUT_H
#define TOOLS_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UNKNOWN UINT64_MAX

enum { SHARED, PRIVATE, SIDES };

/* Pages of a piece that are on one NUMA node */
struct share {
	uint64_t node;
	uint64_t pages;
};

/* A part of a region, a "range" in the dump; pieces follow each other without a gap */
struct piece {
	uint64_t gpa;
	uint64_t size;
	uint64_t private;		/* bytes that are private, or UNKNOWN */
	uint64_t resident[SIDES];	/* bytes in memory, or UNKNOWN */
	struct share *nodes;
	size_t node_count;
};

struct region {
	uint64_t gpa;
	uint64_t size;
	const char *backing;
	bool has_kind;			/* the dump says the next two */
	const char *kind;		/* of its memory; NULL: there is none */
	uint64_t identity;
	bool is_device;			/* has no pages of the host's: a device's, or elsewhere */
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
	uint64_t address_space;		/* of KVM's; UNKNOWN: the dump does not say */
	struct region *regions;
	size_t region_count;
	struct region *stuck;
	size_t stuck_count;
	struct lease *leases;
	size_t lease_count;
};

struct json;

/*
 * Makes a layout of the document @root, whose strings it keeps using. Returns false after
 * putting a sentence in @error, which has @size bytes; free the layout all the same.
 */
bool take_layout(const struct json *root, struct layout *ret, char *error, size_t size);
void free_layout(struct layout *layout);

/* ---- sums ---- */

struct totals {
	uint64_t memory;		/* bytes of all regions that have pages of the host's */
	uint64_t devices;		/* bytes of all regions that have no pages of the host's */
	uint64_t range_count;		/* of them without any memory: the guest's accesses exit */
	uint64_t elsewhere;		/* bytes of the others, of kind device or external */
	uint64_t elsewhere_count;
	uint64_t private;		/* bytes that are private */
	uint64_t resident[SIDES];	/* bytes known to be in memory */
	uint64_t unknown;		/* bytes of pieces for which a side is unknown */
	uint64_t highest_node;		/* UNKNOWN: no node is known */
	uint64_t lowest_node;
};

/* Adds up @count regions. */
void add_up(const struct region *regions, size_t count, struct totals *ret);

/* A stretch of a region, such as one character of a picture shows */
struct cell {
	double size;			/* bytes that the dump describes */
	double private;			/* bytes of these that are private */
	double resident[SIDES];		/* bytes of these that are in memory */
	bool known[SIDES];		/* @resident is known for all of them */
	bool state_known;		/* @private is known for all of them */
	uint64_t node;			/* the node with most pages, or UNKNOWN */
};

/* Describes stretch @index of a region that is divided in @count equal ones. */
void look_at_cell(const struct region *region, size_t index, size_t count, struct cell *ret);

/* ---- lengths of bars ---- */

/*
 * Makes the lengths of bars tell the sizes of their regions: to scale, or, where the shortest
 * would be too short to see, on a logarithmic scale. Whoever uses it says which of the two.
 */
struct scale {
	uint64_t shortest, longest;	/* sizes of regions, bytes; 0: there are none */
	double least;			/* length of the shortest on a logarithmic scale */
	bool is_log;
};

/* No bar is shorter than @least of the longest, which is 1. */
void make_scale(const struct layout *layout, bool with_devices, double least, struct scale *ret);
/* Returns the length of a bar, from 0 to 1. */
double scaled(const struct scale *scale, uint64_t size);

/* ---- pictures ---- */

struct style {
	unsigned int width;		/* of the terminal */
	bool color;
	bool unicode;
	bool every_region;		/* draw every region, however many there are */
};

void print_picture(const struct layout *layout, const struct style *style);
void print_svg(const struct layout *layout);
void print_layout_json(const struct layout *layout);

#endif
