"""Keys and tables that Kata knows and this version does not honour, as data.

Source: Kata Containers 4.1.0, runtime-rs, the structures that read configuration.toml. A key that a model
of ours has is never looked up here, so adding a field to a model is enough to support it.
"""

from __future__ import annotations

HYPERVISORS = frozenset({"clh", "cloud-hypervisor", "dragonball", "firecracker", "openvmm", "remote"})


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYS: dict[str, frozenset[str]] = {
    "hypervisor": _names(
        """
        block_device_aio block_device_cache_direct block_device_cache_noflush block_device_cache_set
        block_device_driver block_device_logical_sector_size block_device_physical_sector_size
        boot_from_template boot_to_be_template cold_plug_vfio confidential_guest cpu_features ctlpath
        dbg_monitor_socket default_bridges default_gpu_model default_gpus default_maxmemory default_maxvcpus
        default_memory default_vcpus device_state_path disable_block_device_use disable_guest_selinux
        disable_image_nvdimm disable_nested_virtualization disable_nesting_checks disable_seccomp
        disable_selinux disable_vhost_net disk_rate_limiter_bw_max_rate disk_rate_limiter_bw_one_time_burst
        disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst enable_annotations enable_debug
        enable_guest_swap enable_hugepages enable_iommu enable_iommu_platform enable_iothreads
        enable_mem_prealloc enable_vhost_user_store enable_virtio_mem entropy_source extra_monitor_socket
        factory firmware guest_extension_images guest_hook_path guest_memory_dump_paging
        guest_memory_dump_path guest_swap_create_threshold_secs guest_swap_path guest_swap_size_percent
        hugepage_type hypervisor_socket hypervisor_timeout image indep_iothreads initdata initrd jailer_path
        kernel kernel_params kernel_verity_params log_level machine_accelerators machine_type memory_offset
        memory_path memory_slots network_queues num_queues overhead_memory overhead_vcpus path pcie_root_port
        pcie_switch_port pflashes prefetch_list_path queue_size reclaim_guest_freed_memory rootfs_type
        rootless rootless_user rx_rate_limiter_max_rate seccomp_sandbox selinux_label sev_snp_guest shared_fs
        snp_guest_policy snp_id_auth snp_id_block tdx_quote_generation_service_socket_port
        tx_rate_limiter_max_rate valid_ctlpaths valid_entropy_sources valid_hypervisor_paths
        valid_jailer_paths valid_vhost_user_store_paths valid_virtio_fs_daemon_paths vhost_user_store_path
        virtio_fs_cache virtio_fs_cache_size virtio_fs_daemon virtio_fs_extra_args virtio_fs_is_dax
        virtio_fs_queue_size vm_rootfs_driver
        """
    ),
    "agent": _names(
        """
        cdh_api_timeout_ms container_pipe_size create_container_timeout debug_console_enabled dial_timeout_ms
        enable_debug enable_tracing health_check_request_timeout_ms kernel_modules launch_process_timeout
        log_level log_port mem_agent passfd_listener_port policy reconnect_timeout_ms server_port
        visible_cdi_devices
        """
    ),
    "runtime": _names(
        """
        agent_name dan_conf disable_guest_seccomp disable_new_netns emptydir_mode enable_debug enable_pprof
        enable_tracing enable_vcpus_pinning experimental hypervisor_name internetworking_model jaeger_endpoint
        jaeger_password jaeger_user keep_abnormal log_level name passfd_listener_port pod_resource_api_sock
        sandbox_bind_mounts sandbox_cgroup_only shared_mounts static_sandbox_resource_mgmt use_passfd_io
        vfio_mode
        """
    ),
}

# (table, key): what to do instead. The table is the dotted name of the table that holds the key.
FOREIGN: dict[tuple[str, str], str] = {
    ("hypervisor.qemu", "disable_seccomp"): 'use seccompsandbox; "off" disables the filter',
}
