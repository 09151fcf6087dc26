; Stores the upper half of the head: by exits the width is wrong, by polling the index.
%include "driver.inc"
    begin
    mov word [rdi + 0x12], 0x7FFF
    finish
