// SPDX-License-Identifier: GPL-2.0

#include <media/videobuf2-core.h>

__rust_helper bool rust_helper_vb2_is_busy(struct vb2_queue *q)
{
	return vb2_is_busy(q);
}
