/* SPDX-License-Identifier: MIT */
/* What the programs share: text for terminals and for JSON. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* What a failed allocation says is the last thing said; exit status 3. */
void *check_memory(void *p);

/* A JSON string, whatever the bytes; NULL is null */
void print_json_string(const char *string);

/* Characters in the first @size bytes */
unsigned int columns(const char *s, size_t size);
/* The bytes, without any that would steer the terminal */
void print_clean(const char *s, size_t size);

enum color { COLOR_AUTO, COLOR_ALWAYS, COLOR_NEVER };

/* false: it is none of the three */
bool parse_color(const char *text, enum color *ret);
/* Of standard output */
bool use_color(enum color color);
unsigned int terminal_width(void);

#endif
