/* SPDX-License-Identifier: MIT */
/*
 * The binary interface of gmem.h on 64-bit machines, in numbers. A released
 * number never changes; options structs may get more fields at their end.
 */
#include "gmem.h"

#define SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), "size of " #type)
#define FIELD(type, field, bytes) \
	_Static_assert(offsetof(struct type, field) == (bytes), "offset of " #type "." #field)
#define NUMBER(name, value) \
	_Static_assert((name) == (value), #name)

SIZE(gmem_finding, 48);
FIELD(gmem_finding, name, 0);
FIELD(gmem_finding, title, 8);
FIELD(gmem_finding, reason, 16);
FIELD(gmem_finding, remedy, 24);
FIELD(gmem_finding, value, 32);
FIELD(gmem_finding, answer, 40);
FIELD(gmem_finding, has_value, 44);

SIZE(gmem_caps_opts, 32);
FIELD(gmem_caps_opts, size, 0);
FIELD(gmem_caps_opts, flags, 8);
FIELD(gmem_caps_opts, vm_type, 16);
FIELD(gmem_caps_opts, kvm_fd, 24);
FIELD(gmem_caps_opts, reserved, 28);

SIZE(gmem_request, 72);
FIELD(gmem_request, size, 0);
FIELD(gmem_request, backings, 8);
FIELD(gmem_request, needs, 40);
FIELD(gmem_request, required_flags, 48);
FIELD(gmem_request, preferred_flags, 56);
FIELD(gmem_request, forbidden_flags, 64);

SIZE(gmem_adopt_opts, 24);
FIELD(gmem_adopt_opts, size, 0);
FIELD(gmem_adopt_opts, flags, 8);
FIELD(gmem_adopt_opts, create_flags, 16);

SIZE(gmem_map_opts, 32);
FIELD(gmem_map_opts, size, 0);
FIELD(gmem_map_opts, flags, 8);
FIELD(gmem_map_opts, hva, 16);
FIELD(gmem_map_opts, align, 24);

SIZE(gmem_inplace_opts, 24);
FIELD(gmem_inplace_opts, size, 0);
FIELD(gmem_inplace_opts, request, 8);
FIELD(gmem_inplace_opts, create_flags, 16);

SIZE(gmem_vm_opts, 64);
FIELD(gmem_vm_opts, size, 0);
FIELD(gmem_vm_opts, flags, 8);
FIELD(gmem_vm_opts, caps, 16);
FIELD(gmem_vm_opts, log, 24);
FIELD(gmem_vm_opts, log_data, 32);
FIELD(gmem_vm_opts, inplace, 40);
FIELD(gmem_vm_opts, vm_type, 48);
FIELD(gmem_vm_opts, wait_ms, 56);
FIELD(gmem_vm_opts, address_space, 60);

SIZE(gmem_region_opts, 104);
FIELD(gmem_region_opts, size, 0);
FIELD(gmem_region_opts, flags, 8);
FIELD(gmem_region_opts, plan, 16);
FIELD(gmem_region_opts, file, 24);
FIELD(gmem_region_opts, file_offset, 32);
FIELD(gmem_region_opts, hva, 40);
FIELD(gmem_region_opts, align, 48);
FIELD(gmem_region_opts, slot, 56);
FIELD(gmem_region_opts, kind, 60);
FIELD(gmem_region_opts, memory, 64);
FIELD(gmem_region_opts, memory_fd, 72);
FIELD(gmem_region_opts, reserved, 76);
FIELD(gmem_region_opts, memory_offset, 80);
FIELD(gmem_region_opts, identity, 88);
FIELD(gmem_region_opts, data, 96);

SIZE(gmem_region_info, 120);
FIELD(gmem_region_info, region, 0);
FIELD(gmem_region_info, data, 8);
FIELD(gmem_region_info, hva, 16);
FIELD(gmem_region_info, file, 24);
FIELD(gmem_region_info, gpa, 32);
FIELD(gmem_region_info, size, 40);
FIELD(gmem_region_info, gmemfd_offset, 48);
FIELD(gmem_region_info, host_offset, 56);
FIELD(gmem_region_info, page_size, 64);
FIELD(gmem_region_info, flags, 72);
FIELD(gmem_region_info, gmemfd, 80);
FIELD(gmem_region_info, host_fd, 84);
FIELD(gmem_region_info, slot, 88);
FIELD(gmem_region_info, backing, 92);
FIELD(gmem_region_info, kind, 96);
FIELD(gmem_region_info, reserved, 100);
SIZE(gmem_memory_opts, 24);
FIELD(gmem_memory_opts, size, 0);
FIELD(gmem_memory_opts, flags, 8);
FIELD(gmem_memory_opts, page_size, 16);

SIZE(gmem_ram_layout_opts, 48);
FIELD(gmem_ram_layout_opts, size, 0);
FIELD(gmem_ram_layout_opts, machine, 8);
FIELD(gmem_ram_layout_opts, flags, 12);
FIELD(gmem_ram_layout_opts, hole_start, 16);
FIELD(gmem_ram_layout_opts, base, 24);
FIELD(gmem_ram_layout_opts, holes, 32);
FIELD(gmem_ram_layout_opts, hole_count, 40);

SIZE(gmem_ram_range, 24);
FIELD(gmem_ram_range, gpa, 0);
FIELD(gmem_ram_range, size, 8);
FIELD(gmem_ram_range, offset, 16);

/* compiled into callers by the inline functions */
SIZE(gmem_dump_opts, 32);
FIELD(gmem_dump_opts, size, 0);
FIELD(gmem_dump_opts, flags, 8);
FIELD(gmem_dump_opts, name, 16);
FIELD(gmem_dump_opts, cell, 24);

SIZE(gmem_table, 8);
FIELD(gmem_table, count, 0);

SIZE(gmem_newest, 24);
FIELD(gmem_newest, table, 0);
FIELD(gmem_newest, period, 8);
FIELD(gmem_newest, dirty, 16);

SIZE(gmem_view, 32);
FIELD(gmem_view, newest, 0);
FIELD(gmem_view, table, 8);
FIELD(gmem_view, period, 16);
FIELD(gmem_view, depth, 24);

SIZE(gmem_numa_opts, 152);
FIELD(gmem_numa_opts, size, 0);
FIELD(gmem_numa_opts, flags, 8);
FIELD(gmem_numa_opts, policy, 16);
FIELD(gmem_numa_opts, reserved, 20);
FIELD(gmem_numa_opts, nodes, 24);

SIZE(gmem_numa_pages, 48);
FIELD(gmem_numa_pages, size, 0);
FIELD(gmem_numa_pages, on_node, 8);
FIELD(gmem_numa_pages, nodes, 16);
FIELD(gmem_numa_pages, elsewhere, 24);
FIELD(gmem_numa_pages, absent, 32);
FIELD(gmem_numa_pages, unknown, 40);
SIZE(gmem_state_range, 24);
FIELD(gmem_state_range, gpa, 0);
FIELD(gmem_state_range, size, 8);
FIELD(gmem_state_range, state, 16);
FIELD(gmem_state_range, backing, 20);

SIZE(gmem_convert_opts, 24);
FIELD(gmem_convert_opts, size, 0);
FIELD(gmem_convert_opts, flags, 8);
FIELD(gmem_convert_opts, discard, 16);
FIELD(gmem_convert_opts, wait_ms, 20);

SIZE(gmem_conversion, 48);
FIELD(gmem_conversion, gpa, 0);
FIELD(gmem_conversion, size, 8);
FIELD(gmem_conversion, converted, 16);
FIELD(gmem_conversion, discarded, 24);
FIELD(gmem_conversion, owed, 32);
FIELD(gmem_conversion, ioctls, 40);

SIZE(gmem_lease_opts, 16);
FIELD(gmem_lease_opts, size, 0);
FIELD(gmem_lease_opts, holder, 8);

SIZE(gmem_listener_opts, 104);
FIELD(gmem_listener_opts, size, 0);
FIELD(gmem_listener_opts, name, 8);
FIELD(gmem_listener_opts, data, 16);
FIELD(gmem_listener_opts, before_private, 24);
FIELD(gmem_listener_opts, undo_private, 32);
FIELD(gmem_listener_opts, after_shared, 40);
FIELD(gmem_listener_opts, removed, 48);
FIELD(gmem_listener_opts, region_added, 56);
FIELD(gmem_listener_opts, region_moved, 64);
FIELD(gmem_listener_opts, region_removed, 72);
FIELD(gmem_listener_opts, before_discard, 80);
FIELD(gmem_listener_opts, undo_discard, 88);
FIELD(gmem_listener_opts, populated, 96);

SIZE(gmem_footprint, 32);
FIELD(gmem_footprint, done, 0);
FIELD(gmem_footprint, before, 8);
FIELD(gmem_footprint, after, 16);
FIELD(gmem_footprint, counted, 24);
FIELD(gmem_footprint, reserved, 28);

SIZE(gmem_populate_opts, 40);
FIELD(gmem_populate_opts, size, 0);
FIELD(gmem_populate_opts, flags, 8);
FIELD(gmem_populate_opts, workers, 16);
FIELD(gmem_populate_opts, reserved, 20);
FIELD(gmem_populate_opts, progress, 24);
FIELD(gmem_populate_opts, progress_data, 32);

SIZE(gmem_gpa_range, 16);
FIELD(gmem_gpa_range, gpa, 0);
FIELD(gmem_gpa_range, size, 8);

SIZE(gmem_discard_opts, 24);
FIELD(gmem_discard_opts, size, 0);
FIELD(gmem_discard_opts, flags, 8);
FIELD(gmem_discard_opts, wait_ms, 16);
FIELD(gmem_discard_opts, reserved, 20);
SIZE(gmem_stats, 216);
FIELD(gmem_stats, size, 0);
FIELD(gmem_stats, flags, 8);
FIELD(gmem_stats, bytes_shared, 16);
FIELD(gmem_stats, bytes_private, 24);
FIELD(gmem_stats, resident_shared, 32);
FIELD(gmem_stats, resident_private, 40);
FIELD(gmem_stats, doubled, 48);
FIELD(gmem_stats, made_private, 56);
FIELD(gmem_stats, made_shared, 64);
FIELD(gmem_stats, conversions, 72);
FIELD(gmem_stats, convert_ioctls, 80);
FIELD(gmem_stats, discards, 88);
FIELD(gmem_stats, discarded, 96);
FIELD(gmem_stats, faults_private, 104);
FIELD(gmem_stats, faults_shared, 112);
FIELD(gmem_stats, faults_late, 120);
FIELD(gmem_stats, faults_stuck, 128);
FIELD(gmem_stats, faults_hole, 136);
FIELD(gmem_stats, faults_refused, 144);
FIELD(gmem_stats, faults_poison, 152);
FIELD(gmem_stats, faults_unknown_reason, 160);
FIELD(gmem_stats, faults_no_address, 168);
FIELD(gmem_stats, requests, 176);
FIELD(gmem_stats, requests_refused, 184);
FIELD(gmem_stats, bytes_rom, 192);
FIELD(gmem_stats, bytes_device, 200);
FIELD(gmem_stats, bytes_external, 208);

SIZE(gmem_vcpu_opts, 32);
FIELD(gmem_vcpu_opts, size, 0);
FIELD(gmem_vcpu_opts, flags, 8);
FIELD(gmem_vcpu_opts, discard, 16);
FIELD(gmem_vcpu_opts, wait_ms, 20);
FIELD(gmem_vcpu_opts, max_stuck_faults, 24);
FIELD(gmem_vcpu_opts, max_repeats, 28);

SIZE(gmem_exit, 48);
FIELD(gmem_exit, kind, 0);
FIELD(gmem_exit, state, 4);
FIELD(gmem_exit, gpa, 8);
FIELD(gmem_exit, size, 16);
FIELD(gmem_exit, page_size, 24);
FIELD(gmem_exit, unknown, 32);
FIELD(gmem_exit, error, 40);
FIELD(gmem_exit, repeats, 44);
SIZE(gmem_extent, 64);
FIELD(gmem_extent, gpa, 0);
FIELD(gmem_extent, size, 8);
FIELD(gmem_extent, hva, 16);
FIELD(gmem_extent, offset, 24);
FIELD(gmem_extent, file_size, 32);
FIELD(gmem_extent, page_size, 40);
FIELD(gmem_extent, fd, 48);
FIELD(gmem_extent, rights, 52);
FIELD(gmem_extent, backing, 56);
FIELD(gmem_extent, reserved, 60);

SIZE(gmem_export_opts, 16);
FIELD(gmem_export_opts, size, 0);
FIELD(gmem_export_opts, flags, 8);

SIZE(gmem_export_range, 24);
FIELD(gmem_export_range, gpa, 0);
FIELD(gmem_export_range, size, 8);
FIELD(gmem_export_range, rights, 16);
FIELD(gmem_export_range, reserved, 20);

SIZE(gmem_peer_opts, 40);
FIELD(gmem_peer_opts, size, 0);
FIELD(gmem_peer_opts, flags, 8);
FIELD(gmem_peer_opts, ranges, 16);
FIELD(gmem_peer_opts, range_count, 24);
FIELD(gmem_peer_opts, wait_ms, 32);
FIELD(gmem_peer_opts, reserved, 36);

SIZE(gmem_import_opts, 48);
FIELD(gmem_import_opts, size, 0);
FIELD(gmem_import_opts, flags, 8);
FIELD(gmem_import_opts, max_bytes, 16);
FIELD(gmem_import_opts, max_extents, 24);
FIELD(gmem_import_opts, reserved, 28);
FIELD(gmem_import_opts, max_table_bytes, 32);
FIELD(gmem_import_opts, max_mappings, 40);
FIELD(gmem_import_opts, reserved2, 44);

SIZE(gmem_vhost_user_region, 32);
FIELD(gmem_vhost_user_region, guest_phys_addr, 0);
FIELD(gmem_vhost_user_region, memory_size, 8);
FIELD(gmem_vhost_user_region, userspace_addr, 16);
FIELD(gmem_vhost_user_region, mmap_offset, 24);

/* enum gmem_backing */
NUMBER(GMEM_BACKING_NONE, 0);
NUMBER(GMEM_BACKING_HOST, 1);
NUMBER(GMEM_BACKING_MAPPED, 2);
NUMBER(GMEM_BACKING_SHARED, 3);
NUMBER(GMEM_BACKING_PRIVATE, 4);
NUMBER(GMEM_BACKING_INPLACE, 5);
NUMBER(GMEM_KIND_DEFAULT, 0);
NUMBER(GMEM_KIND_RAM, 1);
NUMBER(GMEM_KIND_ROM, 2);
NUMBER(GMEM_KIND_DEVICE, 3);
NUMBER(GMEM_KIND_EXTERNAL, 4);

/* enum gmem_cap */
NUMBER(GMEM_CAP_KVM, 0);
NUMBER(GMEM_CAP_USER_MEMORY2, 1);
NUMBER(GMEM_CAP_MEMORY_FAULT_INFO, 2);
NUMBER(GMEM_CAP_MEMORY_ATTRIBUTES, 3);
NUMBER(GMEM_CAP_GUEST_MEMFD, 4);
NUMBER(GMEM_CAP_VM_TYPES, 5);
NUMBER(GMEM_CAP_PRE_FAULT, 6);
NUMBER(GMEM_CAP_CREATE_FLAGS, 7);
NUMBER(GMEM_CAP_MEMSLOTS, 8);
NUMBER(GMEM_CAP_ADDRESS_SPACES, 9);
NUMBER(GMEM_CAP_READONLY, 10);
NUMBER(GMEM_CAP_CREATE, 11);
NUMBER(GMEM_CAP_BIND, 12);
NUMBER(GMEM_CAP_HOST_ACCESS, 13);
NUMBER(GMEM_CAP_PRIVATE_MEMORY, 14);
NUMBER(GMEM_CAP_IN_PLACE, 15);
NUMBER(GMEM_CAP_DIRTY_LOG, 16);
NUMBER(GMEM_CAP_ADDRESS_BITS, 17);
NUMBER(GMEM_CAP_GUEST_USES_FILE, 18);
NUMBER(GMEM_CAP_ARCHITECTURE, 19);
NUMBER(GMEM_CAP_PAGE_SIZE, 20);
NUMBER(GMEM_CAP_NUMA_NODES, 21);
NUMBER(GMEM_CAP_NUMA_POLICY, 22);
NUMBER(GMEM_CAP_IO_URING, 23);
NUMBER(GMEM_CAP_COUNT, 24);

/* flags and other constants */
NUMBER(GMEM_CREATE_MMAP, 1);
NUMBER(GMEM_CREATE_INIT_SHARED, 2);
NUMBER(GMEM_UNKNOWN, 0);
NUMBER(GMEM_NO, 1);
NUMBER(GMEM_YES, 2);
NUMBER(GMEM_CAPS_KVM_FD, 1);
NUMBER(GMEM_CAPS_VM_TYPE, 2);
NUMBER(GMEM_CAPS_NO_SELFTEST, 4);
NUMBER(GMEM_CAPS_RUN_GUEST, 8);
NUMBER(GMEM_NO_VM, -1);
NUMBER(GMEM_NEED_HOST_ACCESS, 1);
NUMBER(GMEM_NEED_CONVERSION, 2);
NUMBER(GMEM_NEED_DIRTY_LOG, 4);
NUMBER(GMEM_NEED_NUMA, 8);
NUMBER(GMEM_NEED_READONLY, 16);
NUMBER(GMEM_REQUEST_BACKINGS, 8);
NUMBER(GMEM_ATTRIBUTES_NONE, 0);
NUMBER(GMEM_ATTRIBUTES_VM, 1);
NUMBER(GMEM_ATTRIBUTES_FILE, 2);
NUMBER(GMEM_ADOPT_CREATE_FLAGS, 1);
NUMBER(GMEM_ADOPT_OF_VM, 2);
NUMBER(GMEM_MAP_READONLY, 1);
NUMBER(GMEM_MAP_FIXED, 2);
NUMBER(GMEM_MAP_REPLACE, 4);
NUMBER(GMEM_RAM_LAYOUT_HYPERTRANSPORT, 1);
NUMBER(GMEM_DIRTY_RING, 1);
NUMBER(GMEM_DIRTY_RING_AND_BITMAP, 2);
NUMBER(GMEM_VM_NO_SELFTEST, 1);
NUMBER(GMEM_VM_TYPE, 2);
NUMBER(GMEM_VM_ADDRESS_SPACE, 4);
NUMBER(GMEM_REGION_READONLY, 1);
NUMBER(GMEM_REGION_DIRTY_LOG, 2);
NUMBER(GMEM_REGION_SLOT, 4);
NUMBER(GMEM_REGION_HVA, 8);
NUMBER(GMEM_REGION_DEVICE, 16);
NUMBER(GMEM_REGION_CONGRUENT, 32);
NUMBER(GMEM_REGION_KEEP_STATE, 64);
NUMBER(GMEM_REGION_RESERVED, 128);
NUMBER(GMEM_REGION_MEMORY_FD, 256);
NUMBER(GMEM_MEMORY_MEMFD, 1);
NUMBER(GMEM_MEMORY_HUGETLB, 2);
NUMBER(GMEM_MEMORY_THP, 4);
NUMBER(GMEM_MEMORY_NO_THP, 8);
NUMBER(GMEM_MEMORY_DUMP, 16);
NUMBER(GMEM_MEMORY_DONTFORK, 32);
NUMBER(GMEM_MEMORY_MERGEABLE, 64);
NUMBER(GMEM_MACHINE_X86_64, 1);
NUMBER(GMEM_MACHINE_ARM64, 2);
NUMBER(GMEM_DUMP_HVA, 1);
NUMBER(GMEM_DUMP_LAYOUT_ONLY, 2);
NUMBER(GMEM_RELAXED, 0);
NUMBER(GMEM_ACQUIRE, 1);
NUMBER(GMEM_RELEASE, 2);
NUMBER(GMEM_SEQ_CST, 3);
NUMBER(GMEM_STATE_SHARED, 1);
NUMBER(GMEM_STATE_PRIVATE, 2);
NUMBER(GMEM_CONVERT_ALL, 1);
NUMBER(GMEM_DISCARD_NOW, 0);
NUMBER(GMEM_DISCARD_LATER, 1);
NUMBER(GMEM_DISCARD_NEVER, 2);
NUMBER(GMEM_POPULATE_RESERVE, 1);
NUMBER(GMEM_POPULATE_UNCHECKED, 2);
NUMBER(GMEM_POPULATE_ALL_KINDS, 4);
NUMBER(GMEM_POPULATE_SHARED_SIDE, 8);
NUMBER(GMEM_POPULATE_PRIVATE_SIDE, 16);
NUMBER(GMEM_DISCARD_INWARD, 1);
NUMBER(GMEM_DISCARD_ALL_KINDS, 2);
NUMBER(GMEM_DISCARD_NOT_ZERO, 4);
NUMBER(GMEM_DISCARD_SHARED_SIDE, 8);
NUMBER(GMEM_DISCARD_PRIVATE_SIDE, 16);
NUMBER(GMEM_EXIT_OTHER, 0);
NUMBER(GMEM_EXIT_FAULT, 1);
NUMBER(GMEM_EXIT_CONVERT, 2);
NUMBER(GMEM_EXIT_BAD_CONVERT, 3);
NUMBER(GMEM_EXIT_POISON, 4);
NUMBER(GMEM_EXIT_UNKNOWN_REASON, 5);
NUMBER(GMEM_EXIT_NO_ADDRESS, 6);
NUMBER(GMEM_RIGHT_READ, 1);
NUMBER(GMEM_RIGHT_WRITE, 2);
NUMBER(GMEM_EXPORT_SKIP, 1);
NUMBER(GMEM_EXPORT_UNSEALED, 2);
NUMBER(GMEM_NUMA_DEFAULT, 0);
NUMBER(GMEM_NUMA_BIND, 1);
NUMBER(GMEM_NUMA_PREFERRED, 2);
NUMBER(GMEM_NUMA_INTERLEAVE, 3);
NUMBER(GMEM_NUMA_SHARED_ONLY, 1);
NUMBER(GMEM_NUMA_WORDS, 16);

SIZE(gmem_dirty_opts, 16);
FIELD(gmem_dirty_opts, size, 0);
FIELD(gmem_dirty_opts, flags, 8);

SIZE(gmem_dirty_info, 64);
FIELD(gmem_dirty_info, size, 0);
FIELD(gmem_dirty_info, bytes, 8);
FIELD(gmem_dirty_info, unlogged_bytes, 16);
FIELD(gmem_dirty_info, private_bytes, 24);
FIELD(gmem_dirty_info, memory_bytes, 32);
FIELD(gmem_dirty_info, rounds, 40);
FIELD(gmem_dirty_info, ns, 48);
FIELD(gmem_dirty_info, stopped_ns, 56);

SIZE(gmem_dirty_range, 24);
FIELD(gmem_dirty_range, gpa, 0);
FIELD(gmem_dirty_range, size, 8);
FIELD(gmem_dirty_range, flags, 16);
FIELD(gmem_dirty_range, reserved, 20);

NUMBER(GMEM_DIRTY_FROM_NOW, 1);
NUMBER(GMEM_DIRTY_VCPUS_STOPPED, 2);
NUMBER(GMEM_DIRTY_ALLOW_UNLOGGED, 4);
NUMBER(GMEM_DIRTY_RINGS, 8);
NUMBER(GMEM_DIRTY_RANGE_UNLOGGED, 1);
NUMBER(GMEM_DIRTY_RANGE_PRIVATE, 2);

SIZE(gmem_transfer_opts, 104);
FIELD(gmem_transfer_opts, size, 0);
FIELD(gmem_transfer_opts, flags, 8);
FIELD(gmem_transfer_opts, image_offset, 16);
FIELD(gmem_transfer_opts, progress, 24);
FIELD(gmem_transfer_opts, progress_data, 32);
FIELD(gmem_transfer_opts, ring, 40);
FIELD(gmem_transfer_opts, ring_tag, 48);
FIELD(gmem_transfer_opts, depth, 56);
FIELD(gmem_transfer_opts, workers, 60);
FIELD(gmem_transfer_opts, lost, 64);
FIELD(gmem_transfer_opts, lost_data, 72);
FIELD(gmem_transfer_opts, dirty, 80);
FIELD(gmem_transfer_opts, parents, 88);
FIELD(gmem_transfer_opts, parent_count, 96);
FIELD(gmem_transfer_opts, reserved, 100);

SIZE(gmem_image_region, 64);
FIELD(gmem_image_region, gpa, 0);
FIELD(gmem_image_region, size, 8);
FIELD(gmem_image_region, private_bytes, 16);
FIELD(gmem_image_region, identity, 24);
FIELD(gmem_image_region, backing, 32);
FIELD(gmem_image_region, kind, 36);
FIELD(gmem_image_region, reserved, 40);

SIZE(gmem_image_summary, 80);
FIELD(gmem_image_summary, size, 0);
FIELD(gmem_image_summary, id, 8);
FIELD(gmem_image_summary, page_size, 16);
FIELD(gmem_image_summary, memory_bytes, 24);
FIELD(gmem_image_summary, private_bytes, 32);
FIELD(gmem_image_summary, left_out_bytes, 40);
FIELD(gmem_image_summary, version, 48);
FIELD(gmem_image_summary, region_count, 52);
FIELD(gmem_image_summary, parent, 56);
FIELD(gmem_image_summary, generation, 64);
FIELD(gmem_image_summary, flags, 72);

NUMBER(GMEM_MIGRATION_OMIT_PRIVATE, 1);
NUMBER(GMEM_MIGRATION_VCPUS_STOPPED, 2);
NUMBER(GMEM_MIGRATION_ALLOW_UNLOGGED, 4);
NUMBER(GMEM_MIGRATION_RINGS, 8);
NUMBER(GMEM_MIGRATION_NO_THREADS, 16);

SIZE(gmem_migration_opts, 56);
FIELD(gmem_migration_opts, size, 0);
FIELD(gmem_migration_opts, flags, 8);
FIELD(gmem_migration_opts, image_offset, 16);
FIELD(gmem_migration_opts, max_bytes_per_second, 24);
FIELD(gmem_migration_opts, progress, 32);
FIELD(gmem_migration_opts, progress_data, 40);
FIELD(gmem_migration_opts, workers, 48);
FIELD(gmem_migration_opts, reserved, 52);

SIZE(gmem_migration_status, 88);
FIELD(gmem_migration_status, size, 0);
FIELD(gmem_migration_status, round, 8);
FIELD(gmem_migration_status, sent_bytes, 16);
FIELD(gmem_migration_status, total_bytes, 24);
FIELD(gmem_migration_status, memory_bytes, 32);
FIELD(gmem_migration_status, ns, 40);
FIELD(gmem_migration_status, left_bytes, 48);
FIELD(gmem_migration_status, dirty_rate, 56);
FIELD(gmem_migration_status, send_rate, 64);
FIELD(gmem_migration_status, pause_ns, 72);
FIELD(gmem_migration_status, unlogged_bytes, 80);

SIZE(gmem_transfer_result, 88);
FIELD(gmem_transfer_result, size, 0);
FIELD(gmem_transfer_result, file_bytes, 8);
FIELD(gmem_transfer_result, direct_bytes, 16);
FIELD(gmem_transfer_result, data_bytes, 24);
FIELD(gmem_transfer_result, zero_bytes, 32);
FIELD(gmem_transfer_result, private_bytes, 40);
FIELD(gmem_transfer_result, engine, 48);
FIELD(gmem_transfer_result, no_ring, 52);
FIELD(gmem_transfer_result, lost_bytes, 56);
FIELD(gmem_transfer_result, left_out_bytes, 64);
FIELD(gmem_transfer_result, image_id, 72);
FIELD(gmem_transfer_result, generation, 80);

NUMBER(GMEM_TRANSFER_NO_DIRECT, 1);
NUMBER(GMEM_TRANSFER_NO_RING, 2);
NUMBER(GMEM_TRANSFER_SYNC, 4);
NUMBER(GMEM_TRANSFER_OMIT_PRIVATE, 8);
NUMBER(GMEM_TRANSFER_LEAVE_REST, 16);
NUMBER(GMEM_TRANSFER_VERIFY, 32);
NUMBER(GMEM_TRANSFER_UNCHECKED, 64);
NUMBER(GMEM_TRANSFER_ALLOW_LOST, 128);
NUMBER(GMEM_TRANSFER_NO_THREADS, 256);
NUMBER(GMEM_TRANSFER_FOLLOWED, 512);
NUMBER(GMEM_IMAGE_FOLLOWED, 1);
NUMBER(GMEM_TRANSFER_TAGS, 64);
NUMBER(GMEM_TRANSFER_DONE, 0);
NUMBER(GMEM_TRANSFER_MORE, 1);
NUMBER(GMEM_TRANSFER_WAIT, 2);
NUMBER(GMEM_ENGINE_PLAIN, 1);
NUMBER(GMEM_ENGINE_IO_URING, 2);
NUMBER(GMEM_STATS_RESIDENT, 1);
NUMBER(GMEM_VCPU_EXPLICIT, 1);
NUMBER(GMEM_PEER_WHOLE_FILES, 1);
NUMBER(GMEM_PEER_CUT_OFF, 2);
NUMBER(GMEM_IMPORT_UNSEALED, 1);
NUMBER(GMEM_VIEW_BORROWED, 1ull << 63);
