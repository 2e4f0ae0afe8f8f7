# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
