/* SPDX-License-Identifier: MIT */
/* JSON as a tree. What is read may be anything, and meant to do harm. */
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
	struct json *next;		/* in the array or object it is in */
	struct json *first;		/* of an array or object */
	const char *name;		/* of a member of an object, else NULL */
	const char *string;
	uint64_t number;
	unsigned int line;		/* where it begins */
	enum json_type type;
	bool truth;
};

/* A document and all that hangs on it */
struct document {
	struct json *root;
	struct chunk *chunks;
	char error[160];		/* why there is no root */
};

/* @text: @size bytes and a terminator. false: @error says what is wrong, and where. */
bool read_json(const char *text, size_t size, struct document *ret);
void free_document(struct document *document);

const struct json *find_member(const struct json *object, const char *name);

#endif
