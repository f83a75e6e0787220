/* SPDX-License-Identifier: MIT */
/*
 * limit: which limit of the process or the host is behind an errno.
 *
 * The kernel refuses one file descriptor or mapping too many with an errno that several
 * limits share. This module looks at the limits, after the refusal, and names the one that
 * is reached. It asks nothing of the kernel unless something was refused.
 */
#ifndef GMEM_LIMIT_H
#define GMEM_LIMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * As gmem_fail(), for the refusal of a file descriptor, or of a mapping or a memfd of
 * @mapped bytes; 0: of none. The sentence ends with the name of @err, and with the limit and
 * its number if one is known to be reached.
 */
int gmem_fail_by_limit(int err, uint64_t mapped, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* As gmem_fail_by_limit(), for a mapping; @is_shared: of a file, so that it is no data of the process */
int gmem_fail_to_map(int err, uint64_t mapped, bool is_shared, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * The refusal of a file that was to be read says that a limit is reached, which may be otherwise
 * the next time, and not that the file is out of reach.
 */
bool gmem_is_about_limit(int err);

/* Longest text of gmem_limit_describe(), with its end */
#define GMEM_LIMIT_TEXT 160

/* Writes the name of @err, and the limit, as above. */
void gmem_limit_describe(int err, uint64_t mapped, char text[GMEM_LIMIT_TEXT]);

#endif
