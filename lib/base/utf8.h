/* SPDX-License-Identifier: MIT */
/*
 * utf8: text of unknown origin, on its way into JSON, into a sentence or to a terminal.
 *
 * Only what is known to be harmless is printed as it is: letters, marks, digits, punctuation
 * and symbols of living scripts, and the plain space. So nothing steers a terminal, turns
 * the direction of writing, is drawn as nothing, or means something in a later version of
 * Unicode. That does not depend on the locale, which the library must not ask: iswprint()
 * would know nothing but ASCII in a program that never called setlocale().
 *
 * lib/tools compiles this module, too.
 */
#ifndef GMEM_UTF8_H
#define GMEM_UTF8_H

#include <stdbool.h>
#include <stdint.h>

/* In place of a code point: a byte that begins no UTF-8 sequence */
#define GMEM_UTF8_BROKEN UINT32_MAX

/*
 * Returns how many bytes of the NUL-terminated @s make up its first character, and stores
 * that character: at the end of the string 0 bytes and 0, for broken UTF-8 one byte and
 * GMEM_UTF8_BROKEN.
 */
unsigned int gmem_utf8_next(const char *s, uint32_t *ret);

/* Whether a character may be printed as it is */
bool gmem_utf8_is_harmless(uint32_t code);

/* Bytes of an escape sequence and its NUL */
#define GMEM_UTF8_ESCAPE 13

/*
 * Writes a character as an escape sequence of JSON: "\u202e", a pair of them above U+FFFF,
 * and "\ufffd" for broken UTF-8. Returns @buf.
 */
const char *gmem_utf8_escape(uint32_t code, char buf[GMEM_UTF8_ESCAPE]);

/* Writes "?" over each character of a string that may not be printed. */
void gmem_utf8_clean(char *s);

#endif
