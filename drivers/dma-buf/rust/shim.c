// SPDX-License-Identifier: GPL-2.0
/*
 * What only C can say for the dma-buf core in Rust: namespaced exports, initcalls, tracepoints and
 * macros.
 */

#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/printk.h>
#include <linux/slab.h>

#include "shim.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/dma_buf.h>

EXPORT_SYMBOL_NS_GPL(dma_buf_export, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_fd, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_fd_install, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_get, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_put, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_dynamic_attach, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_attach, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_detach, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_pin, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_unpin, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_map_attachment, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_map_attachment_unlocked, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_unmap_attachment, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_unmap_attachment_unlocked, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_attach_revocable, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_invalidate_mappings, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_begin_cpu_access, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_end_cpu_access, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_mmap, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_vmap, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_vmap_unlocked, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_vunmap, "DMA_BUF");
EXPORT_SYMBOL_NS_GPL(dma_buf_vunmap_unlocked, "DMA_BUF");

void dma_buf_shim_might_lock(struct dma_resv *resv)
{
	might_lock(&resv->lock.base);
}

struct kmem_cache *dma_buf_shim_create_inode_cache(unsigned int size,
						   void (*ctor)(void *))
{
	return kmem_cache_create("dmabuf_inode_cache", size, 0,
				 SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, ctor);
}

struct inode *dma_buf_shim_alloc_inode(struct super_block *sb,
				       struct kmem_cache *cache)
{
	return alloc_inode_sb(sb, cache, GFP_KERNEL);
}

/* In C for dynamic debug. */
void dma_buf_shim_debug_unaligned(dma_addr_t addr, unsigned int len)
{
	pr_debug("dma_buf_map_attachment: addr %llx or len %x is not page aligned!\n",
		 (u64)addr, len);
}

static int __init dma_buf_init(void)
{
	return dma_buf_rust_init();
}
subsys_initcall(dma_buf_init);

static void __exit dma_buf_deinit(void)
{
	dma_buf_rust_exit();
}

__exitcall(dma_buf_deinit);
