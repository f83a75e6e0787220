/* SPDX-License-Identifier: MIT */
#include "base/vm_type.h"

#include <stddef.h>
#include <strings.h>

#include "base/macros.h"

#define ARM64_ADDRESS_BITS 0xff

static const struct {
	uint64_t type;
	char name[13];
	bool is_arm64, is_x86, is_plain;
} types[] = {
	{ 0, "default", true, true, true },
	{ 1, "sw-protected", false, true, true },
	{ 2, "SEV", false, true, false },
	{ 3, "SEV-ES", false, true, false },
	{ 4, "SNP", false, true, false },
	{ 5, "TDX", false, true, false },
	{ GMEM_VM_TYPE_PKVM, "pKVM", true, false, false },
};

static bool is_of(size_t i, bool is_arm64)
{
	return is_arm64 ? types[i].is_arm64 : types[i].is_x86;
}

const char *gmem_vm_type_name(uint64_t type, bool is_arm64)
{
	if (is_arm64 && type & GMEM_VM_TYPE_PKVM)
		type = GMEM_VM_TYPE_PKVM;
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(types); i++)
		if (types[i].type == type && is_of(i, is_arm64))
			return types[i].name;
	return NULL;
}

bool gmem_vm_type_find(const char *name, bool is_arm64, uint64_t *ret)
{
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(types); i++) {
		if (strcasecmp(types[i].name, name) != 0 || !is_of(i, is_arm64))
			continue;
		*ret = types[i].type;
		return true;
	}
	return false;
}

bool gmem_vm_type_is_plain(uint64_t type, bool is_arm64)
{
	if (is_arm64)
		return type <= ARM64_ADDRESS_BITS;
	for (size_t i = 0; i < GMEM_ARRAY_SIZE(types); i++)
		if (types[i].type == type)
			return types[i].is_plain;
	return false;
}
