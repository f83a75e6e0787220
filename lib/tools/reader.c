/* SPDX-License-Identifier: MIT */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "reader.h"
#include "text.h"

/* A dump needs less, and the recursion is safe up to here. */
#define MAX_DEPTH 32

/* Values and strings are in chunks of memory, which are freed all at once. */
#define CHUNK ((size_t)1 << 16)

struct chunk {
	struct chunk *next;
	size_t used, size;
	_Alignas(8) char bytes[];
};

struct reader {
	struct document *document;
	const char *at, *end;
	const char *line_start;
	unsigned int line;
	unsigned int depth;
	bool failed;
};

static void *take(struct document *document, size_t size)
{
	struct chunk *chunk = document->chunks;
	size_t room = size > CHUNK ? size : CHUNK;

	size = (size + 7) / 8 * 8;
	if (!chunk || chunk->size - chunk->used < size) {
		chunk = check_memory(malloc(sizeof(*chunk) + room + 8));
		*chunk = (struct chunk){ .next = document->chunks, .size = room + 8 };
		document->chunks = chunk;
	}
	chunk->used += size;
	return chunk->bytes + chunk->used - size;
}

__attribute__((format(printf, 2, 3)))
static bool fail(struct reader *r, const char *format, ...)
{
	size_t size = sizeof(r->document->error);
	va_list args;
	int used;

	if (r->failed)
		return false;

	r->failed = true;
	used = snprintf(r->document->error, size, "line %u, column %zu: ", r->line,
			(size_t)(r->at - r->line_start) + 1);
	va_start(args, format);
	vsnprintf(r->document->error + used, size - (size_t)used, format, args);
	va_end(args);
	return false;
}

static void skip_space(struct reader *r)
{
	for (; r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at; r->at++) {
		if (*r->at == '\n') {
			r->line++;
			r->line_start = r->at + 1;
		}
	}
}

static bool accept(struct reader *r, char c)
{
	skip_space(r);
	if (r->at == r->end || *r->at != c)
		return false;
	r->at++;
	return true;
}

static bool expect(struct reader *r, char c)
{
	if (accept(r, c))
		return true;
	if (r->at == r->end)
		return fail(r, "it ends where a '%c' should be", c);
	return fail(r, "a '%c' should be here", c);
}

/* ---- strings ---- */

static bool read_hex(struct reader *r, uint32_t *ret)
{
	uint32_t value = 0;

	for (int i = 0; i < 4; i++, r->at++) {
		char c = r->at < r->end ? *r->at : '\0';

		if (c >= '0' && c <= '9')
			value = value * 16 + (uint32_t)(c - '0');
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			value = value * 16 + (uint32_t)((c | 32) - 'a' + 10);
		else
			return fail(r, "\\u wants four hexadecimal digits");
	}
	*ret = value;
	return true;
}

static char *put_character(char *to, uint32_t c)
{
	if (c < 0x80) {
		*to++ = (char)c;
	} else if (c < 0x800) {
		*to++ = (char)(0xc0 | c >> 6);
		*to++ = (char)(0x80 | (c & 0x3f));
	} else if (c < 0x10000) {
		*to++ = (char)(0xe0 | c >> 12);
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	} else {
		*to++ = (char)(0xf0 | c >> 18);
		*to++ = (char)(0x80 | (c >> 12 & 0x3f));
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	}
	return to;
}

/* Reads an escape after "\u". Half of a surrogate pair becomes U+FFFD; so does a NUL. */
static bool read_unicode(struct reader *r, char **to)
{
	uint32_t high, low;

	if (!read_hex(r, &high))
		return false;

	if (high >= 0xd800 && high < 0xdc00 && r->end - r->at >= 2 && r->at[0] == '\\' &&
	    r->at[1] == 'u') {
		r->at += 2;
		if (!read_hex(r, &low))
			return false;
		if (low >= 0xdc00 && low < 0xe000) {
			*to = put_character(*to, 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
			return true;
		}
		*to = put_character(*to, 0xfffd);
		high = low;
	}
	*to = put_character(*to, high == 0 || (high >= 0xd800 && high < 0xe000) ? 0xfffd : high);
	return true;
}

static bool read_escape(struct reader *r, char **to)
{
	static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
	const char *found;

	if (r->at == r->end)
		return fail(r, "it ends inside a string");
	if (*r->at == 'u') {
		r->at++;
		return read_unicode(r, to);
	}
	found = *r->at ? strchr(from, *r->at) : NULL;
	if (!found)
		return fail(r, "no escape sequence");
	*(*to)++ = into[found - from];
	r->at++;
	return true;
}

/* Reads up to the closing quote. Decoding makes no string longer. */
static bool read_string(struct reader *r, const char **ret)
{
	const char *end = r->at;
	unsigned int length;
	uint32_t code;
	char *string, *to;

	while (end < r->end && *end != '"')
		end += *end == '\\' && end + 1 < r->end ? 2 : 1;
	string = to = take(r->document, (size_t)(end - r->at) + 1);

	while (r->at < r->end && *r->at != '"') {
		if ((unsigned char)*r->at < 0x20)
			return fail(r, "a control character inside a string");
		if (*r->at == '\\') {
			r->at++;
			if (!read_escape(r, &to))
				return false;
			continue;
		}
		length = gmem_utf8_next(r->at, &code);
		if (code == GMEM_UTF8_BROKEN)
			return fail(r, "a byte that is not UTF-8");
		memcpy(to, r->at, length);
		to += length;
		r->at += length;
	}
	if (r->at == r->end)
		return fail(r, "it ends inside a string");
	r->at++;
	*to = '\0';
	*ret = string;
	return true;
}

/* ---- other values ---- */

static bool is_digit(const struct reader *r)
{
	return r->at < r->end && *r->at >= '0' && *r->at <= '9';
}

static bool skip_digits(struct reader *r)
{
	if (!is_digit(r))
		return fail(r, "a digit should be here");
	while (is_digit(r))
		r->at++;
	return true;
}

static bool read_rest_of_number(struct reader *r)
{
	if (r->at < r->end && *r->at == '.') {
		r->at++;
		if (!skip_digits(r))
			return false;
	}
	if (r->at < r->end && (*r->at | 32) == 'e') {
		r->at++;
		if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
			r->at++;
		if (!skip_digits(r))
			return false;
	}
	return true;
}

static bool read_number(struct reader *r, struct json *value)
{
	const char *start = r->at;
	bool negative = *r->at == '-', whole = true;

	r->at += negative;
	if (is_digit(r) && *r->at == '0' && r->end - r->at > 1 && r->at[1] >= '0' && r->at[1] <= '9')
		return fail(r, "a number that begins with 0");
	if (!is_digit(r))
		return fail(r, "a digit should be here");

	for (; is_digit(r); r->at++) {
		uint64_t digit = (uint64_t)(*r->at - '0');

		if (value->number > (UINT64_MAX - digit) / 10)
			whole = false;
		else
			value->number = value->number * 10 + digit;
	}
	start = r->at;
	if (!read_rest_of_number(r))
		return false;
	value->type = whole && !negative && r->at == start ? JSON_NUMBER : JSON_OTHER_NUMBER;
	return true;
}

static bool read_word(struct reader *r, struct json *value)
{
	static const struct {
		const char *word;
		enum json_type type;
		bool truth;
	} words[] = {
		{ "null", JSON_NULL, false },
		{ "true", JSON_BOOL, true },
		{ "false", JSON_BOOL, false },
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		size_t size = strlen(words[i].word);

		if ((size_t)(r->end - r->at) >= size && !memcmp(r->at, words[i].word, size)) {
			r->at += size;
			value->type = words[i].type;
			value->truth = words[i].truth;
			return true;
		}
	}
	if (r->at == r->end)
		return fail(r, "it ends where a value should be");
	return fail(r, "no JSON value begins like this");
}

static struct json *read_value(struct reader *r);

static bool read_member_name(struct reader *r, const char **ret)
{
	return expect(r, '"') && read_string(r, ret) && expect(r, ':');
}

/* Reads the elements or members after the opening bracket. */
static bool read_inside(struct reader *r, struct json *value, char closing)
{
	struct json **link = &value->first;
	const char *name = NULL;

	if (++r->depth > MAX_DEPTH)
		return fail(r, "more than %d values inside each other", MAX_DEPTH);

	if (!accept(r, closing)) {
		do {
			if (value->type == JSON_OBJECT && !read_member_name(r, &name))
				return false;
			*link = read_value(r);
			if (!*link)
				return false;
			(*link)->name = name;
			link = &(*link)->next;
		} while (accept(r, ','));
		if (!expect(r, closing))
			return false;
	}
	r->depth--;
	return true;
}

static struct json *read_value(struct reader *r)
{
	struct json *value = take(r->document, sizeof(*value));
	bool good;

	skip_space(r);
	*value = (struct json){ .line = r->line };
	if (accept(r, '"')) {
		value->type = JSON_STRING;
		good = read_string(r, &value->string);
	} else if (accept(r, '[')) {
		value->type = JSON_ARRAY;
		good = read_inside(r, value, ']');
	} else if (accept(r, '{')) {
		value->type = JSON_OBJECT;
		good = read_inside(r, value, '}');
	} else if (is_digit(r) || (r->at < r->end && *r->at == '-')) {
		good = read_number(r, value);
	} else {
		good = read_word(r, value);
	}
	return good ? value : NULL;
}

bool read_json(const char *text, size_t size, struct document *ret)
{
	struct reader r = {
		.document = ret,
		.at = text,
		.end = text + size,
		.line_start = text,
		.line = 1,
	};
	struct json *root;

	*ret = (struct document){ 0 };
	root = read_value(&r);
	if (!root)
		return false;

	skip_space(&r);
	if (r.at < r.end)
		return fail(&r, "more follows the end");
	ret->root = root;
	return true;
}

void free_document(struct document *document)
{
	struct chunk *chunk;

	while ((chunk = document->chunks)) {
		document->chunks = chunk->next;
		free(chunk);
	}
}

const struct json *find_member(const struct json *object, const char *name)
{
	const struct json *member;

	for (member = object->first; member; member = member->next)
		if (!strcmp(member->name, name))
			return member;
	return NULL;
}
