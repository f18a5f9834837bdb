package lab

import "time"

// timeNow is the lab's one clock: wall time with Go's monotonic reading.
var timeNow = time.Now
