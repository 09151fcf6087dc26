; A store that begins before the head and ends in it: by exits the place is wrong, by polling the index.
%include "driver.inc"
    begin
    mov dword [rdi + 0x0E], 0xFFFF0000
    finish
