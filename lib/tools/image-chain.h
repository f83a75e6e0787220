/* SPDX-License-Identifier: MIT */
/*
 * image-chain: images that are based on each other, read side by side by guest address.
 *
 * Each image is read from front to back, a record at a time, so a chain takes a MiB and the lists
 * of each image, however much memory they have. That the images are whole was seen before, by
 * gmem_image_verify(); what is not so any more ends the program.
 */
#ifndef TOOLS_IMAGE_CHAIN_H
#define TOOLS_IMAGE_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transfer/image.h"

/* A file with an image, or several that follow each other */
struct image_file {
	const char *path;
	const char *name;	/* for messages */
	int fd;
	uint64_t offset;	/* where its first image begins */
	uint64_t size;		/* bytes of the file; 0: it is none */
};

enum piece_what {
	PIECE_NOTHING,		/* no memory */
	PIECE_ELSEWHERE,	/* of a kind whose contents are in no image */
	PIECE_PRIVATE,
	PIECE_DATA,
	PIECE_ZERO,
	PIECE_LOST,
	PIECE_OLDER,		/* as in the parent of the chain's first image */
};

/* What is in a range of guest memory */
struct piece {
	uint64_t gpa, last;
	enum piece_what what;
	const char *bytes;	/* of PIECE_DATA; until the next look */
	const struct image_elsewhere *elsewhere;	/* of PIECE_ELSEWHERE */
};

struct image_source {
	const struct image_file *file;
	uint64_t start;		/* of the image in the file */
	uint64_t size;		/* of the image, if another one follows */
	struct gmem_image_origin origin;

	struct image_region *regions;
	struct image_elsewhere *elsewhere;
	struct image_range *privates;
	size_t region_count, elsewhere_count, private_count;

	uint64_t position, records;	/* of the record at hand: from the start, and its number */
	char *record;
	uint64_t room, loaded;		/* bytes of @record that there are, and that are read */
	struct gmem_image_cursor cursor;	/* behind @table */
	struct gmem_image_table table;
	uint64_t contents;		/* in the record: those of the next entry */
	uint32_t entry;			/* next one in @table */
	struct piece piece;		/* the entry before it */
	bool has_piece, at_end;

	size_t region, private, other;	/* in the three lists, where the last look was */
};

struct image_chain {
	struct image_source *sources;	/* the oldest first */
	size_t count;
	void (*found)(const struct image_source *source);	/* is called for each; or NULL */
};

/* Append the images of a file, which stays open. Ends the program if one does not fit. */
void chain_add(struct image_chain *chain, const struct image_file *file);
void chain_free(struct image_chain *chain);

/* What is at @gpa, and how far. Addresses must increase from look to look. */
void chain_look(struct image_chain *chain, uint64_t gpa, struct piece *ret);

static inline struct image_source *chain_newest(const struct image_chain *chain)
{
	return &chain->sources[chain->count - 1];
}

#endif
