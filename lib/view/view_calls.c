/* SPDX-License-Identifier: MIT */
/* The header makes gmem.h define its inline functions here, exported. */
#include "view/view_calls.h"
