# Makes the table of `run bench` from its result lines: GROUP|CASE|CONTENDER|MILLISECONDS EXITS IO MMIO for a boot, and
# GROUP|CASE|CONTENDER|BYTES-PER-SECOND for a disk. A failed measurement has a message instead of the numbers. The exit
# status is 1 if a contender has no number for a case.

function median(list,    values, n, i, j, t) {
    n = split(list, values, " ")
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && values[j - 1] + 0 > values[j] + 0; j--) { t = values[j]; values[j] = values[j - 1]; values[j - 1] = t }
    return n ? values[int((n + 1) / 2)] : "-"
}
function ratio(a, b) { return a > 0 && b > 0 ? sprintf("%.2f", a / b) : "-" }

BEGIN { FS = "|" }
{
    # A contender without numbers gets a line in the table too.
    if (!($2 in seen)) { seen[$2] = 1; cases[++ncases] = $2 }
    if (!($3 in met)) { met[$3] = 1; who[++nwho] = $3 }
    if ($4 !~ /^[0-9]/) next
    split($4, part, " ")
    runs[$2, $3]++
    first[$2, $3] = first[$2, $3] " " part[1]; exits[$2, $3] = exits[$2, $3] " " part[2]
    io[$2, $3] = io[$2, $3] " " part[3]; mmio[$2, $3] = mmio[$2, $3] " " part[4]
}
END {
    print "Medians. The ratio is relative to qemu-lean: below 1 is better for a boot, above 1 for a disk. Exits are until USERLAND-READY."
    printf "%-22s %-15s %4s %9s %6s %8s %9s %7s\n", "boot", "", "runs", "ms", "ratio", "exits", "port I/O", "MMIO"
    for (c = 1; c <= ncases; c++) if (cases[c] !~ /^disk/) for (w = 1; w <= nwho; w++) {
        k = cases[c]; m = median(first[k, who[w]])
        printf "%-22s %-15s %4d %9s %6s %8s %9s %7s\n", k, who[w], runs[k, who[w]], m, ratio(m, median(first[k, "qemu-lean"])),
            median(exits[k, who[w]]), median(io[k, who[w]]), median(mmio[k, who[w]])
    }
    printf "\n%-22s %-15s %4s %9s %6s %8s\n", "disk", "", "runs", "MB/s", "ratio", "req/s"
    for (c = 1; c <= ncases; c++) if (cases[c] ~ /^disk/) for (w = 1; w <= nwho; w++) {
        k = cases[c]; m = median(first[k, who[w]])
        printf "%-22s %-15s %4d %9s %6s %8s\n", substr(k, 7), who[w], runs[k, who[w]], (m > 0) ? sprintf("%.1f", m / 1e6) : "-",
            ratio(m, median(first[k, "qemu-lean"])), (m > 0) ? sprintf("%.0f", m / (k ~ /4 KiB/ ? 4096 : 1048576)) : "-"
    }

    for (c = 1; c <= ncases; c++) for (w = 1; w <= nwho; w++) if (!runs[cases[c], who[w]]) {
        print "testbed: " who[w] " has no result for: " cases[c] > "/dev/stderr"; failed = 1
    }
    exit !ncases || failed
}
