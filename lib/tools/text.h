/* SPDX-License-Identifier: MIT */
/* text: output to terminals and as JSON, which both programs share. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Returns @p. If it is NULL, prints a message and exits with status 3. */
void *check_memory(void *p);

/* Prints a JSON string, valid whatever the bytes are; a NULL is printed as null. */
void print_json_string(const char *string);

/* Counts the characters in the first @size bytes. */
unsigned int columns(const char *s, size_t size);
/* Prints @size bytes, with "?" for each control character. */
void print_clean(const char *s, size_t size);

enum color { COLOR_AUTO, COLOR_ALWAYS, COLOR_NEVER };

/* Returns false if @text is not "auto", "always" or "never". */
bool parse_color(const char *text, enum color *ret);
/* Returns whether to use colours on standard output. */
bool use_color(enum color color);
unsigned int terminal_width(void);

#endif
