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

#define IMAGE_VERSION	1u	/* of images that are neither incremental nor followed by others */
#define IMAGE_VERSION_2	2u
#define IMAGE_UNIT	((uint64_t)1 << 20)	/* no record crosses a multiple of it */
#define IMAGE_BLOCK	((uint64_t)4096)	/* all sizes and addresses are multiples of it */

enum image_kind {
	IMAGE_HEAD, IMAGE_REGIONS, IMAGE_ELSEWHERE, IMAGE_PRIVATE, IMAGE_DATA, IMAGE_LOST, IMAGE_END,
	IMAGE_PART,		/* of version 2: all records but the first */
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
	uint32_t count;		/* entries that follow; in version 2 tables */
	uint32_t version;	/* in IMAGE_HEAD; 0 in all others */
	union {
		struct { uint64_t page_size, regions, privates; } head;
		struct { uint64_t base, reserved[2]; } data;
		struct { uint64_t pages, checksums, reserved; } end;
		uint64_t words[3];
	};
};

/* The first record of version 2 */
struct image_head {
	struct image_record record;
	uint64_t parent;	/* identity, or 0 */
	uint64_t generation;
	uint64_t flags;		/* IMAGE_FOLLOWED */
	uint64_t reserved[5];
};

#define IMAGE_FOLLOWED	UINT64_C(1)

/* In version 2, the beginning of what is a record of its own in version 1 */
struct image_table {
	char kind[8];
	uint32_t count;		/* entries that follow */
	uint32_t reserved;
	union {
		struct { uint64_t base, reserved; } data;
		struct { uint64_t pages, checksums; } end;
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
	uint32_t count;		/* in version 2, perhaps with IMAGE_ZEROS: they have no contents */
};

#define IMAGE_ZEROS	(1u << 31)

_Static_assert(sizeof(struct image_record) == 64, "the beginning of a record");
_Static_assert(sizeof(struct image_head) == 128, "the beginning of a record");
_Static_assert(sizeof(struct image_table) == 32, "the beginning of a table");
_Static_assert(sizeof(struct image_region) == 32, "a region's entry");
_Static_assert(sizeof(struct image_elsewhere) == 32, "the entry of a region without contents");

#define IMAGE_MAX_RUNS ((IMAGE_BLOCK - sizeof(struct image_record)) / sizeof(struct image_run))
#define IMAGE_MAX_REGIONS 65536u

/* Private ranges kept without a VM that bounds them; those that touch are one. */
#define IMAGE_MAX_PRIVATES ((size_t)1 << 22)

/* Returns -EBADMSG, with the sentence that something is wrong with record @number. */
int gmem_image_bad(uint64_t number, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* CRC-32C of the whole record, with 0 in place of its checksum */
uint32_t gmem_image_checksum(const struct image_record *record);
/* The same, where @rest is the CRC-32C of all behind the record's first block */
uint32_t gmem_image_join_checksum(const struct image_record *record, uint32_t rest);

/* ---- heads, of either version ---- */

/* What the first record of an image says */
struct gmem_image_origin {
	uint64_t id;
	uint32_t version;
	uint64_t page_size, regions, privates;
	uint64_t parent, generation, flags;	/* 0 in version 1 */
};

/* Tell an image, of which little may be there, from anything else. @offset: where it is */
int gmem_image_check_beginning(uint64_t offset, const char *bytes, uint64_t size);
/* Is the first record, of which a block is there, of a version that is known? */
int gmem_image_check_version(const struct image_record *record);
/* The same, and the contents of its head */
int gmem_image_read_origin(const struct image_record *record, struct gmem_image_origin *ret);

/* ---- tables, of either version ---- */

/* A record of version 1 is a table, and one of version 2 has some. */
struct gmem_image_table {
	enum image_kind kind;
	uint32_t version;
	uint32_t count;		/* entries, according to the table */
	uint64_t room;		/* bytes in which they are */
	uint64_t number;	/* of the record */
	uint64_t base;		/* of IMAGE_DATA */
	uint64_t pages, checksums;	/* of IMAGE_END */
	const void *entries;
};

/* The next table of a record; zeroed, it is the first. */
struct gmem_image_cursor {
	uint64_t at;
	uint32_t tables;
};

/* What the entries of a table are: memory with contents, of zeros, or lost */
struct gmem_image_run {
	uint64_t gpa;
	uint64_t size;
	enum gmem_image_run_kind { IMAGE_RUN_DATA, IMAGE_RUN_ZEROS, IMAGE_RUN_LOST } kind;
};

/* The kind of a record or a table, or IMAGE_KINDS */
enum image_kind gmem_image_kind(const char kind[8]);
/* -EOPNOTSUPP: it is of a kind that a later library may know */
int gmem_image_fail_kind(uint64_t number, const char kind[8]);
/*
 * Do the tables of a record of version 2 fit into it, and its size to them? Only the first @there
 * bytes of it are there: one whose tables are not among these is refused.
 */
int gmem_image_check_tables(const struct image_record *record, uint64_t there);
/* Find the table at @cursor of a record that was checked, and move on; false: there are no more. */
bool gmem_image_next_table(const struct image_record *record, uint32_t version,
			   struct gmem_image_cursor *cursor, struct gmem_image_table *ret);
/* Has the table entries, of @size bytes each, and are all of them in it? */
bool gmem_image_has_entries(const struct gmem_image_table *table, size_t size);
/* An entry of IMAGE_DATA or IMAGE_LOST */
struct gmem_image_run gmem_image_run_at(const struct gmem_image_table *table, uint32_t i);

#endif
