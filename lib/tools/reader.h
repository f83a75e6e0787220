/* SPDX-License-Identifier: MIT */
/* reader: reads JSON into a tree. The text may be malicious. */
#ifndef TOOLS_READER_H
#define TOOLS_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_type {
	JSON_NULL,
	JSON_BOOL,
	JSON_NUMBER,		/* whole, from 0 to 2^64 - 1 */
	JSON_OTHER_NUMBER,	/* any other */
	JSON_STRING,
	JSON_ARRAY,
	JSON_OBJECT,
};

struct json {
	struct json *next;		/* the next element or member */
	struct json *first;		/* the first element of an array, or member of an object */
	const char *name;		/* if this is a member of an object; else NULL */
	const char *string;
	uint64_t number;
	unsigned int line;		/* the line where the value begins */
	enum json_type type;
	bool truth;
};

/* A document with the memory of its values */
struct document {
	struct json *root;
	struct chunk *chunks;
	char error[160];		/* says why there is no root */
};

/*
 * Reads @text, which has @size bytes and a NUL. On failure it returns false, and the error
 * in @ret says what is wrong and where; free the document all the same.
 */
bool read_json(const char *text, size_t size, struct document *ret);
void free_document(struct document *document);

/* Returns the first member with this name, or NULL. */
const struct json *find_member(const struct json *object, const char *name);

#endif
