/* SPDX-License-Identifier: MIT */
/* Bytes of unknown origin in JSON and on terminals: shared with lib/tools. */
#ifndef GMEM_UTF8_H
#define GMEM_UTF8_H

/* Bytes of the UTF-8 sequence that the terminated @s begins with; 0 if it is not UTF-8 */
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

	/* overlong, a surrogate, or past the last character */
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return length;
}

#endif
