/* SPDX-License-Identifier: MIT */
/* hva: reading and writing at host addresses that the user names. */
#ifndef GMEM_HVA_H
#define GMEM_HVA_H

#endif
