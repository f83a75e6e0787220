/* SPDX-License-Identifier: MIT */
/* text: output to terminals and as JSON, which the programs share. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Returns @p. If it is NULL, prints a message and exits with status 3. */
void *check_memory(void *p);

/* The exit status for wrong usage */
#define EXIT_USAGE 2

/* Points to --help and exits with EXIT_USAGE. */
__attribute__((noreturn)) void usage_exit(void);
/* Prints a sentence to standard error, with "?" as print_clean() has it. */
__attribute__((format(printf, 1, 2))) void print_error(const char *format, ...);
/* Prints what is wrong with the command line, then calls usage_exit(). */
__attribute__((format(printf, 1, 2), noreturn)) void usage_error(const char *format, ...);

/*
 * Prints that getopt_long(), with opterr 0, refused @argument, then calls usage_exit(). What it
 * would print itself has the argument as it is.
 */
__attribute__((noreturn)) void refuse_option(const char *argument);

/* Prints a JSON string, valid whatever the bytes are; a NULL is printed as null. */
void print_json_string(const char *string);

/*
 * For the bytes [@s, @s + @size) of a NUL-terminated string, @size no more than its length
 * and where a character begins: count the characters, and print them, with "?" for each that
 * could do something to a terminal.
 */
unsigned int columns(const char *s, size_t size);
void print_clean(const char *s, size_t size);
/* Returns how many bytes the first @max characters of a string have. */
size_t first_columns(const char *s, unsigned int max);

#define SIZE_TEXT 24

/* Writes a size such as "64 MiB" or "1.5 GiB" to @buf, which has SIZE_TEXT bytes. */
const char *size_text(uint64_t bytes, char *buf);

enum color { COLOR_AUTO, COLOR_ALWAYS, COLOR_NEVER };

/* Returns false if @text is not "auto", "always" or "never". */
bool parse_color(const char *text, enum color *ret);
/* Returns whether to use colours on standard output. */
bool use_color(enum color color);
unsigned int terminal_width(void);

#endif
