/* SPDX-License-Identifier: MIT */
/* image: the records of an image of a guest's memory, as gmem-image(5) describes them. */
#ifndef GMEM_IMAGE_H
#define GMEM_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "images are read and written as they lie in memory, which must be little-endian"
#endif

#define IMAGE_VERSION	1u
#define IMAGE_UNIT	((uint64_t)1 << 20)	/* no record crosses a multiple of it */
#define IMAGE_BLOCK	((uint64_t)4096)	/* all sizes and addresses are multiples of it */

enum image_kind {
	IMAGE_HEAD, IMAGE_REGIONS, IMAGE_ELSEWHERE, IMAGE_PRIVATE, IMAGE_DATA, IMAGE_LOST, IMAGE_END,
	IMAGE_KINDS
};

extern const char gmem_image_kinds[IMAGE_KINDS][8];

/* The beginning of every record */
struct image_record {
	char kind[8];
	uint64_t id;		/* of the image, random */
	uint64_t number;	/* of the record, from 0 */
	uint32_t size;		/* bytes of the record, with this struct */
	uint32_t checksum;	/* CRC-32C of the record, with 0 here */
	uint32_t count;		/* entries that follow */
	uint32_t version;	/* in IMAGE_HEAD; 0 in all others */
	union {
		struct { uint64_t page_size, regions, privates; } head;
		struct { uint64_t base, reserved[2]; } data;
		struct { uint64_t pages, checksums, reserved; } end;
		uint64_t words[3];
	};
};

struct image_region {
	uint64_t gpa;
	uint64_t size;
	uint32_t backing;
	uint32_t reserved[3];
};

/* A region whose contents are not in the image for its kind */
struct image_elsewhere {
	uint64_t gpa;
	uint64_t size;
	uint64_t identity;
	uint32_t kind;		/* enum gmem_kind */
	uint32_t reserved;
};

struct image_range {
	uint64_t gpa;
	uint64_t size;
};

/*
 * Pages of IMAGE_BLOCK bytes, counted from the record's base. The contents of all its runs
 * begin at the record's second block.
 */
struct image_run {
	uint32_t first;
	uint32_t count;
};

_Static_assert(sizeof(struct image_record) == 64, "the beginning of a record");
_Static_assert(sizeof(struct image_region) == 32, "a region's entry");
_Static_assert(sizeof(struct image_elsewhere) == 32, "the entry of a region without contents");

#define IMAGE_MAX_RUNS ((IMAGE_BLOCK - sizeof(struct image_record)) / sizeof(struct image_run))
#define IMAGE_MAX_REGIONS 65536u

/* Private ranges kept without a VM that bounds them; those that touch are one. */
#define IMAGE_MAX_PRIVATES ((size_t)1 << 22)

/* Returns -EBADMSG, with the sentence that something is wrong with record @number. */
int gmem_image_bad(uint64_t number, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Has the record entries, of @size bytes each, and are all of them in it? */
bool gmem_image_has_entries(const struct image_record *record, size_t size);
/* CRC-32C of the whole record, with 0 in place of its checksum */
uint32_t gmem_image_checksum(const struct image_record *record);
/* The same, where @rest is the CRC-32C of all behind the record's first block */
uint32_t gmem_image_join_checksum(const struct image_record *record, uint32_t rest);

#endif
