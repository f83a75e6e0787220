/* SPDX-License-Identifier: MIT */
/*
 * utf8: checks text of unknown origin before it goes into JSON or to a terminal.
 *
 * lib/tools includes this header, too.
 */
#ifndef GMEM_UTF8_H
#define GMEM_UTF8_H

/*
 * Returns the length of the UTF-8 sequence at the beginning of the NUL-terminated @s, or
 * 0 if @s does not begin with one.
 */
static inline unsigned int gmem_utf8_length(const unsigned char *s)
{
	unsigned int length, i;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;

	length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	for (i = 1; i < length; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;

	/* Refuse overlong sequences, surrogates, and values above U+10FFFF. */
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return length;
}

#endif
